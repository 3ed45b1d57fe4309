// Prompt of Qwen2.5-VL: the chat template as token ids, and M-RoPE positions as transformers 5.17 computes them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "models/model.h"
#include "models/qwen2_5_vl/config.h"

namespace saccade::qwen2_5_vl {

// The published chat template in native form. What varies between checkpoints is read from theirs.
struct ChatFormat {
  int32_t im_start = 0, im_end = 0;
  std::string default_system =
      "You are a helpful assistant.";  // added when the first message is no system; empty: never

  // `folder` may hold chat_template.json or chat_template.jinja or a "chat_template" in tokenizer_config.json; throws
  // Error for a template that is not of this family.
  static ChatFormat read(const std::string& folder, const Tokenizer& tokenizer);
  static ChatFormat published(const Tokenizer& tokenizer);
};

// Grid of one media item in merged units (what the language model sees).
struct MediaGrid {
  bool video = false;
  int64_t t = 0, h = 0, w = 0;
  double second_per_grid = 0;

  int64_t tokens() const { return t * h * w; }
};

// messages -> ids, positions and media_at of the Prompt; grids are in the order of the media parts.
void build_prompt(const std::vector<Message>& messages, std::span<const MediaGrid> grids, const Config& config,
                  const ChatFormat& format, const Tokenizer& tokenizer, Prompt& prompt);

}  // namespace saccade::qwen2_5_vl
