// CHECK is for programmer errors only: it prints where and what, and aborts. User input must never reach it.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace saccade {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition, const std::string& detail) {
  fmt::print(stderr, "{}:{}: check failed: {} {}\n", file, line, condition, detail);
  std::abort();
}

}  // namespace saccade

// CHECK(cond) or CHECK(cond, "format {}", value)
#define CHECK(condition, ...)                                                                 \
  do {                                                                                        \
    if (!(condition)) [[unlikely]]                                                            \
      ::saccade::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
