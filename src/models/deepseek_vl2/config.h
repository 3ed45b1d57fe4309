// config.json of DeepSeek-VL2: language_config, vision_config and projector_config. Missing keys take the defaults of
// the original configuration classes: the published small and base omit what equals them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "ops/ops.h"

namespace saccade::deepseek_vl2 {

struct Size {
  int64_t width = 0, height = 0;
  bool operator==(const Size&) const = default;
};

// SigLIP: square pictures of image_size pixels a side, cut into patches; what is left over at the right and bottom is
// not used.
struct VisionConfig {
  int64_t layers = 24, hidden = 1024, heads = 16, patch = 16, image_size = 384;
  double mlp_ratio = 4;

  int64_t head_dim() const { return hidden / heads; }
  int64_t ffn() const { return static_cast<int64_t>(static_cast<double>(hidden) * mlp_ratio); }
  int64_t side() const { return image_size / patch; }  // patches of a row
  int64_t patches() const { return side() * side(); }  // of a tile
  int64_t patch_values() const { return 3 * patch * patch; }
};

struct Config {
  int64_t layers = 30, hidden = 4096, ffn = 11008, heads = 32, kv_heads = 32, vocab = 102400, max_positions = 2048;
  double rope_theta = 10000, rms_eps = 1e-6;
  int32_t bos = 100000, eos = 100001;

  // Latent attention; otherwise plain attention with heads of hidden / heads values.
  bool mla = true;
  int64_t latent = 512, nope = 128, rope = 64, value = 128;

  // Layers before first_moe, and those whose number is no multiple of moe_every, are dense. 0 experts: all are.
  int64_t experts = 0, shared_experts = 0, moe_ffn = 1407, first_moe = 0, moe_every = 1;
  ops::Routing routing;
  bool routing_bias = false;  // noaux_tc: e_score_correction_bias takes part in the choice

  VisionConfig vision;
  int64_t downsample = 2;         // side of the squares of patches that become one token
  std::vector<Size> resolutions;  // candidate_resolutions: multiples of image_size

  int64_t head_dim() const { return mla ? nope + rope : hidden / heads; }
  int64_t value_dim() const { return mla ? value : hidden / heads; }
  bool moe(int64_t layer) const { return experts > 0 && layer >= first_moe && layer % moe_every == 0; }
  int64_t kv_values() const { return mla ? latent + rope : 2 * kv_heads * head_dim(); }  // cached per token and layer
  int64_t tile_side() const { return (vision.side() + downsample - 1) / downsample; }    // tokens of a row of a tile

  // Validates every size before anything is built on it; throws Error naming origin and key. What is not computed
  // (q_lora_rank, grouped routing, scaled rope, tied heads, other projectors, activations or layouts) is refused by
  // name.
  static Config parse(const Json& json, const std::string& origin);
  // "deepseek-vl2-tiny", "-small", "-base"; throws Error listing the names.
  static Config published(const std::string& name);
  Json to_json() const;  // every key written; parse() reads it back
};

}  // namespace saccade::deepseek_vl2
