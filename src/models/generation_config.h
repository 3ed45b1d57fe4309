// generation_config.json of any Hugging Face checkpoint.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "models/model.h"

namespace saccade {

// Missing keys take the defaults of transformers' generate(): no sampling (temperature 0), and where do_sample is true
// temperature 1, top_k 50, top_p 1. eos_ids stays empty when the file names none. Throws Error naming origin and key;
// ids must lie within `vocab`.
GenerationDefaults parse_generation_config(const Json& json, int64_t vocab, const std::string& origin);

using TokenId = std::function<std::optional<int32_t>(std::string_view token)>;

// generation_config.json of `folder`, or the defaults when there is none. Where it names no eos, config.json's does
// (`config_eos`), and last the eos_token of tokenizer_config.json. Throws Error when there is none at all: without it
// no answer would end.
GenerationDefaults load_generation_config(const std::string& folder, const std::vector<int32_t>& config_eos,
                                          int64_t vocab, const TokenId& token_id);

}  // namespace saccade
