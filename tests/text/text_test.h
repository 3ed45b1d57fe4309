// Helpers of the text tests.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"

namespace saccade {

inline Json base_tokenizer_json() {
  return read_json_file(std::string(SACCADE_SOURCE_DIR) + "/tests/data/text/tokenizer.json");
}

// Message of the Error that `action` must throw.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no Error thrown";
  return {};
}

}  // namespace saccade
