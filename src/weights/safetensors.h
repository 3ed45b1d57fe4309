// The safetensors format: 8 bytes little-endian length n, n bytes of JSON header, then the data of all tensors.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weights/weights.h"

namespace saccade {

inline constexpr size_t kMaxSafetensorsHeader = 100'000'000;  // the limit of the format's own library

// All tensors of a file in the order of their data, pointing into `file`; `origin` names the file in errors.
// Throws Error unless every byte of data belongs to exactly one tensor and every size follows from shape and dtype.
// A tensor of unknown dtype is listed as it stands.
std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file, const std::string& origin);

// (tensor, file) pairs of model.safetensors.index.json. File names are plain: a path is refused.
std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view json,
                                                                         const std::string& origin);

// A name from a file, quoted, control characters escaped, cut to a readable length: errors stay one line.
std::string quoted_name(std::string_view name);

}  // namespace saccade
