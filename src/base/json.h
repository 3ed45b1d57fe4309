// JSON files of a checkpoint and of the command line, with errors that name file and key.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace saccade {

using Json = nlohmann::json;

// Parses text (at most kMaxJsonDepth levels deep). `origin` names the file or field in errors.
Json parse_json(const std::string& text, const std::string& origin);
Json read_json_file(const std::string& path, size_t max_bytes = size_t{64} << 20);

inline constexpr int kMaxJsonDepth = 64;

}  // namespace saccade
