// PagedKv: how the tokens of a step find their keys and values.
#pragma once

#include "tensor/tensor.h"

namespace saccade {

inline constexpr int64_t kPageTokens = 64;

// All index tensors are I32 and contiguous. Sequence b owns rows [q_offsets[b], q_offsets[b+1]) of the step; its last
// row is the token at position kv_lens[b] - 1 of the cache. Token t of the cache of b lies in page
// page_table[b][t / 64], place t % 64.
//
// The first `decodes` sequences generate, the others read their prompts. Where an op has one form for each, a row takes
// the form that this says, so that its result depends neither on how a prompt is cut nor on what stands beside it.
struct PagedKv {
  int64_t decodes = 0;
  Tensor q_offsets;   // [B+1]
  Tensor kv_lens;     // [B]   cached tokens, this step's included
  Tensor page_table;  // [B, max_pages]
  Tensor slots;       // [T]   where each row of the step is written: page * 64 + place
  int64_t longest_q = 0,
          longest_kv = 0;  // rows and cached tokens of any sequence; needed where the rest is on a device

  int64_t decode_rows() const { return q_offsets.as<int32_t>()[decodes]; }
};

}  // namespace saccade
