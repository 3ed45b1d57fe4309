#include "base/json.h"

#include "base/error.h"
#include "base/mapped_file.h"

namespace saccade {

Json parse_json(const std::string& text, const std::string& origin) {
  const auto limit_depth = [&](int depth, Json::parse_event_t event, Json&) {
    const bool opens = event == Json::parse_event_t::array_start || event == Json::parse_event_t::object_start;
    if (opens && depth >= kMaxJsonDepth) fail("{}: JSON nested deeper than {} levels", origin, kMaxJsonDepth);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const Json::exception& e) {
    fail("{}: not valid JSON: {}", origin, e.what());
  }
}

Json read_json_file(const std::string& path, size_t max_bytes) { return parse_json(read_file(path, max_bytes), path); }

}  // namespace saccade
