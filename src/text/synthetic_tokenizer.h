// A tokenizer without a tokenizer.json, for models with synthetic weights.
#pragma once

#include <span>
#include <string_view>
#include <utility>

#include "text/tokenizer.h"

namespace saccade {

// The 256 bytes are the first ids, without merges; the special tokens have the ids given (rising, 256 at least); no
// text reaches what lies between.
Tokenizer synthetic_tokenizer(std::span<const std::pair<std::string_view, int32_t>> special);

}  // namespace saccade
