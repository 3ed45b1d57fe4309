// Number of parameters, from the config alone (for the memory plan, before any weight is read).
#pragma once

#include "models/deepseek_vl2/config.h"

namespace saccade::deepseek_vl2 {

inline int64_t attention_parameters(const Config& c) {
  const int64_t q = c.heads * c.head_dim(), output = c.heads * c.value_dim() * c.hidden;
  if (!c.mla) return c.hidden * (q + 2 * c.kv_heads * c.head_dim()) + output;
  return c.hidden * (q + c.latent + c.rope) + c.latent + c.heads * (c.nope + c.value) * c.latent + output;
}

// Of one layer, with so many of its routed experts.
inline int64_t layer_parameters(const Config& c, int64_t layer, int64_t experts) {
  const int64_t mlp = c.moe(layer) ? c.experts * (c.hidden + (c.routing_bias ? 1 : 0)) +
                                         3 * c.hidden * c.moe_ffn * (experts + c.shared_experts)
                                   : 3 * c.hidden * c.ffn;
  return 2 * c.hidden + attention_parameters(c) + mlp;
}

inline int64_t text_parameters(const Config& c, int64_t experts) {
  int64_t n = c.hidden + c.vocab * c.hidden;  // the final norm and the head
  for (int64_t i = 0; i < c.layers; ++i) n += layer_parameters(c, i, experts);
  return n;
}

// Read for each decoded token: of the routed experts, those that one token chooses.
inline int64_t streamed_parameters(const Config& c) { return text_parameters(c, c.routing.top_k); }

inline int64_t vision_parameters(const Config& c) {
  const VisionConfig& v = c.vision;
  const int64_t width = v.hidden, block = 4 * width * width + 2 * width * v.ffn() + 9 * width + v.ffn();
  const int64_t projector = (width * c.downsample * c.downsample + 1 + c.hidden + 1) * c.hidden;
  return (v.patch_values() + 1) * width + v.patches() * width + v.layers * block + 2 * width + projector +
         2 * c.hidden;  // and what separates rows and views
}

// What is computed with; a checkpoint also holds an attention pool that is not.
inline int64_t parameters(const Config& c) {
  return text_parameters(c, c.experts) + c.vocab * c.hidden + vision_parameters(c);
}

}  // namespace saccade::deepseek_vl2
