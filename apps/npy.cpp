#include "npy.h"

#include <fmt/format.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace saccade::apps {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

void write_npy(const std::filesystem::path& path, const float* data, const int64_t* shape, int rank) {
  std::string dims;
  size_t count = 1;
  for (int i = 0; i < rank; ++i) {
    dims += fmt::format("{}, ", shape[i]);
    count *= static_cast<size_t>(shape[i]);
  }
  if (rank > 1) dims.resize(dims.size() - 2);  // Python writes (2, 3) but (2,)
  if (rank == 1) dims.pop_back();
  std::string header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", dims);
  constexpr size_t kPrefix = 10, kAlign = 64;
  header.append(kAlign - (kPrefix + header.size() + 1) % kAlign, ' ');
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());

  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.write(reinterpret_cast<const char*>(&length), 2);
  file << header;
  file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(count * sizeof(float)));
  file.close();
  if (!file) fail("{}: cannot write: {}", path.string(), std::strerror(errno));
}

Dump::Dump(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) fail("{}: cannot create the folder: {}", folder_.string(), error.message());
  const bool empty = std::filesystem::is_empty(folder_, error);
  if (error) fail("{}: cannot read the folder: {}", folder_.string(), error.message());
  if (!empty) fail("{}: not empty; files of two dumps would mix", folder_.string());
}

void Dump::write(std::string_view name, const float* data, const int64_t* shape, int rank) noexcept {
  if (!error_.empty()) return;
  try {
    const int64_t step = steps_[std::string(name)]++;
    write_npy(folder_ / fmt::format("{}.step{}.npy", name, step), data, shape, rank);
    ++files_;
  } catch (const std::exception& e) {
    error_ = e.what();
  }
}

void Dump::check() const {
  if (!error_.empty()) throw Error(error_);
}

}  // namespace saccade::apps
