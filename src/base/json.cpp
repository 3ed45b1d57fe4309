#include "base/json.h"

#include "base/error.h"
#include "base/mapped_file.h"

namespace saccade {

Json parse_json(const std::string& text, const std::string& origin) {
  bool too_deep = false;
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxJsonDepth) too_deep = true;
    return !too_deep;
  };
  try {
    Json value = Json::parse(text, limit_depth);
    if (too_deep) fail("{}: JSON nested deeper than {} levels", origin, kMaxJsonDepth);
    return value;
  } catch (const Json::exception& e) {
    fail("{}: not valid JSON: {}", origin, e.what());
  }
}

Json read_json_file(const std::string& path, size_t max_bytes) { return parse_json(read_file(path, max_bytes), path); }

}  // namespace saccade
