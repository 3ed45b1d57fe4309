// What Pillow, transformers, PyAV and torch make of the files in tests/data/media
// (tools/reference/preprocess_goldens.py).
#pragma once

#include <zlib.h>

#include <string>

#include "base/error.h"
#include "base/json.h"

namespace saccade::media {

inline std::string data_path(const std::string& name) {
  return std::string(SACCADE_SOURCE_DIR) + "/tests/data/media/" + name;
}

inline Json goldens(const char* part) { return read_json_file(data_path("goldens.json")).at(part); }

inline uint32_t crc(const void* data, size_t bytes) {
  return static_cast<uint32_t>(crc32_z(0, static_cast<const Bytef*>(data), bytes));
}

// Message of the Error that `fn` throws, or "no error".
template <class Fn>
std::string error_of(Fn fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace saccade::media
