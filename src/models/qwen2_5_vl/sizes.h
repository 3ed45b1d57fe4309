// Number of parameters, from the config alone (for the memory plan, before any weight is read).
#pragma once

#include "models/qwen2_5_vl/config.h"

namespace saccade::qwen2_5_vl {

inline int64_t text_layer_parameters(const Config& c) {
  const int64_t q = c.heads * c.head_dim(), kv = c.kv_heads * c.head_dim();
  return c.hidden * (2 * q + 2 * kv) + q + 2 * kv + 3 * c.hidden * c.intermediate + 2 * c.hidden;
}

// Read for each decoded token: every layer, the final norm and the head.
inline int64_t streamed_parameters(const Config& c) {
  return c.layers * text_layer_parameters(c) + c.hidden + c.vocab * c.hidden;
}

inline int64_t vision_parameters(const VisionConfig& v) {
  const int64_t merged = v.hidden * v.merge * v.merge;
  const int64_t block = 4 * v.hidden * v.hidden + 4 * v.hidden + 3 * v.hidden * v.intermediate + 2 * v.intermediate +
                        v.hidden + 2 * v.hidden;
  return v.patch_values() * v.hidden + v.depth * block + v.hidden + merged * merged + merged + merged * v.out_hidden +
         v.out_hidden;
}

inline int64_t parameters(const Config& c) {
  return streamed_parameters(c) + (c.tie_embeddings ? 0 : c.vocab * c.hidden) + vision_parameters(c.vision);
}

}  // namespace saccade::qwen2_5_vl
