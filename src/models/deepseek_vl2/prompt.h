// Prompt of DeepSeek-VL2 as token ids: the original processor's template, without its display string.
#pragma once

#include <span>
#include <vector>

#include "models/deepseek_vl2/config.h"
#include "models/model.h"

namespace saccade::deepseek_vl2 {

// The tokenizer with the tokens that the original processor adds where tokenizer.json lacks them (padding, <image>, the
// five of grounding, <|User|>, <|Assistant|>, in this order); grounding tokens are shown in decoded text.
Tokenizer with_processor_tokens(const Tokenizer& tokenizer);

// <image>'s id in such a tokenizer.
int32_t image_token(const Tokenizer& tokenizer);

// messages -> ids, positions and media_at of the Prompt; media_tokens are in the order of the picture parts. Every
// stretch of text between pictures is tokenised on its own. A picture is followed by a line break unless the text after
// it begins with one. Grounding tokens written in a text become their ids; no other special token does. Throws
// Error naming the message for a role other than user and assistant (system in the first), for pictures that are not
// the user's, and when the last message is not the user's.
void build_prompt(const std::vector<Message>& messages, std::span<const int64_t> media_tokens, const Config& config,
                  const Tokenizer& tokenizer, Prompt& prompt);

}  // namespace saccade::deepseek_vl2
