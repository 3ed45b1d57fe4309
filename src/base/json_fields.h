// Checked reading of one JSON object: a missing or null key takes its default, a wrong value is an Error that names
// file and key, what was expected and what was found.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace saccade {

// A value as it stands in the file, in ASCII and cut to a readable length.
std::string json_excerpt(const Json& value);

class JsonFields {
 public:
  // `prefix` is what stands before a key in errors, e.g. "vision_config.". Throws Error when `json` is no object.
  JsonFields(const Json& json, std::string origin, std::string prefix = "");

  bool contains(const char* key) const { return json_.contains(key); }  // null counts
  const Json* find(const char* key) const;                              // nullptr when missing or null
  JsonFields object(const char* key) const;

  int64_t integer(const char* key, int64_t missing, int64_t low, int64_t high) const;  // low and high are allowed
  double number(const char* key, double missing, double low, double high) const;
  bool boolean(const char* key, bool missing) const;
  std::string text(const char* key, const std::string& missing) const;
  std::vector<int64_t> integers(const char* key, int64_t low, int64_t high) const;  // an array, or one integer

  [[noreturn]] void wrong(const char* key, const std::string& expected) const;  // found: the value of the key
  std::string name(const char* key) const { return origin_ + ": " + prefix_ + key; }

 private:
  std::optional<int64_t> in_range(const Json& value, int64_t low, int64_t high) const;

  const Json& json_;
  std::string origin_, prefix_;
};

}  // namespace saccade
