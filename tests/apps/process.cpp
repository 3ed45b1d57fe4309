#include "apps/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace saccade::apps_test {
namespace {

namespace fs = std::filesystem;

struct TemporaryRoot {
  fs::path path;
  int next = 0;

  TemporaryRoot() {
    std::string name = (fs::temp_directory_path() / "saccade-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary folder");
    path = name;
  }
  ~TemporaryRoot() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

int open_output(const Options& options, const std::string& path) {
  if (options.full_output) return ::open("/dev/full", O_WRONLY);
  if (options.close_output) {
    int ends[2];
    if (::pipe(ends) != 0) return -1;
    ::close(ends[0]);
    return ends[1];
  }
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

}  // namespace

std::string temporary_folder() {
  static TemporaryRoot root;
  const fs::path folder = root.path / std::to_string(root.next++);
  fs::create_directories(folder);
  return folder.string();
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

Outcome saccade(const std::vector<std::string>& args, const Options& options) {
  const std::string folder = temporary_folder();
  const std::string in = folder + "/in", out = folder + "/out", err = folder + "/err";
  write_all(in, options.input);
  std::vector<std::string> words = {SACCADE_BINARY};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const int in_fd = ::open(in.c_str(), O_RDONLY);
  const int out_fd = open_output(options, out);
  const int err_fd = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(in_fd, 0);
    ::dup2(out_fd, 1);
    ::dup2(err_fd, 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (const int fd : {in_fd, out_fd, err_fd}) ::close(fd);

  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
  bool interrupted = false;
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (options.interrupt && !interrupted && fs::file_size(out) > 0) {
      ::kill(child, SIGINT);
      interrupted = true;
    }
    if (std::chrono::steady_clock::now() > deadline) ::kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_all(out), read_all(err)};
}

}  // namespace saccade::apps_test
