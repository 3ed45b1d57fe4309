// PagedKv: how the tokens of a step find their keys and values.
#pragma once

#include "tensor/tensor.h"

namespace saccade {

inline constexpr int64_t kPageTokens = 64;

// All index tensors are I32 and contiguous. Sequence b owns rows [q_offsets[b], q_offsets[b+1]) of the step; its last
// row is the token at position kv_lens[b] - 1 of the cache. Token t of the cache of b lies in page
// page_table[b][t / 64], place t % 64.
struct PagedKv {
  Tensor q_offsets;   // [B+1]
  Tensor kv_lens;     // [B]   cached tokens, this step's included
  Tensor page_table;  // [B, max_pages]
  Tensor slots;       // [T]   where each row of the step is written: page * 64 + place
};

}  // namespace saccade
