// Errors that a user can cause: bad files, configs, requests. Thrown before work starts, caught in main or per request.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace saccade {

// what() is one line that names the file, key or field, what was expected and what was found.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

// One line about the exception that is being handled.
std::string current_error();

}  // namespace saccade
