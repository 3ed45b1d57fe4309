#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace saccade {
namespace {

// Closes the descriptor on every path out.
struct File {
  int fd;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};

size_t regular_file_size(int fd, const std::string& path) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) fail("{}: cannot stat: {}", path, std::strerror(errno));
  if (!S_ISREG(st.st_mode)) fail("{}: not a regular file", path);
  return static_cast<size_t>(st.st_size);
}

int open_for_reading(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer before we can refuse it. Regular files do not care.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("{}: cannot open: {}", path, std::strerror(errno));
  return fd;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const File file{open_for_reading(path)};
  size_ = regular_file_size(file.fd, path);
  if (size_ == 0) return;
  data_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    fail("{}: cannot map {} bytes: {}", path, size_, std::strerror(errno));
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const File file{open_for_reading(path)};
  const size_t size = regular_file_size(file.fd, path);
  if (size > max_bytes) fail("{}: {} bytes, more than the limit of {}", path, size, max_bytes);
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(file.fd, text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("{}: cannot read: {}", path, n < 0 ? std::strerror(errno) : "file shrank while being read");
    done += static_cast<size_t>(n);
  }
  return text;
}

}  // namespace saccade
