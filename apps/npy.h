// Intermediates of the model as NumPy files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace saccade::apps {

// NumPy format 1.0: little-endian float32, row-major. Throws Error naming the path.
void write_npy(const std::filesystem::path& path, const float* data, const int64_t* shape, int rank);

// A folder of intermediates: the n-th value tapped under a name goes to <name>.step<n>.npy, n from 0.
class Dump {
 public:
  // Creates the folder; throws Error when it cannot or when files are in it already.
  explicit Dump(std::filesystem::path folder);

  // Called inside the engine, which must not see exceptions: the first failure is kept for check().
  void write(std::string_view name, const float* data, const int64_t* shape, int rank) noexcept;
  void check() const;

  const std::filesystem::path& folder() const { return folder_; }
  int64_t files() const { return files_; }

 private:
  std::filesystem::path folder_;
  std::map<std::string, int64_t, std::less<>> steps_;
  std::string error_;
  int64_t files_ = 0;
};

}  // namespace saccade::apps
