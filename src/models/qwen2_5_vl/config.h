// config.json of Qwen2.5-VL: the flat layout of the hub, and text_config nested (transformers 4.52 and later). Missing
// keys take the defaults of transformers 5.17's configuration classes, as saved configs omit keys equal to them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace saccade::qwen2_5_vl {

struct VisionConfig {
  int64_t depth = 32, hidden = 3584, intermediate = 3420, heads = 16, patch = 14, merge = 2, temporal_patch = 2,
          in_channels = 3, window = 112, out_hidden = 3584;
  std::vector<int64_t> full_attention_blocks = {7, 15, 23, 31};
  double tokens_per_second = 4;

  int64_t head_dim() const { return hidden / heads; }
  int64_t patch_values() const { return in_channels * temporal_patch * patch * patch; }
};

struct Config {
  int64_t layers = 80, hidden = 8192, intermediate = 29568, heads = 64, kv_heads = 8, vocab = 152064;
  int64_t max_positions = 32768;
  bool tie_embeddings = false;
  double rope_theta = 1e6, rms_eps = 1e-5;
  std::vector<int64_t> mrope_sections = {16, 24, 24};  // time, height, width; sums to head_dim / 2
  std::vector<int32_t> eos_ids;                        // empty when the config names none
  int32_t image_token = 151655, video_token = 151656, vision_start = 151652, vision_end = 151653;
  VisionConfig vision;

  int64_t head_dim() const { return hidden / heads; }

  // Validates every size before anything is built on it; throws Error naming origin and key. What the engine does not
  // compute (sliding windows, scaled rope, quantised weights, other activations) is refused by name.
  static Config parse(const Json& json, const std::string& origin);
  // "qwen2.5-vl-3b", "-7b", "-32b", "-72b"; throws Error listing the names.
  static Config published(const std::string& name);
  Json to_json() const;  // flat layout, every key written; parse() reads it back
};

}  // namespace saccade::qwen2_5_vl
