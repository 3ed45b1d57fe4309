// The subcommands of `saccade`. Each takes the arguments after its name and returns an exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace saccade::apps {

inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;         // bad input, a model's error, output that cannot be written
inline constexpr int kUsage = 2;          // wrong flags
inline constexpr int kInterrupted = 130;  // SIGINT, as shells report it

// Wrong flags; what() is one line.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Args = std::vector<std::string>;

int run(const Args& args);
int chat(const Args& args);
int inspect(const Args& args);
int doctor(const Args& args);
int bench(const Args& args);

}  // namespace saccade::apps
