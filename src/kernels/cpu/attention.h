// Softmax attention over the paged cache and inside segments. Shapes and contracts: ops/ops.h.
#pragma once

#include "base/thread_pool.h"
#include "tensor/arena.h"

namespace saccade::cpu {

// The index tensors of ops/paged_kv.h that attention needs.
struct PagedIndex {
  Tensor q_offsets, kv_lens, page_table;
};

// q [T,H,Dh], kv_layer [pages, 2, K, 64, Dh] -> y [T,H,Dh].
void paged_attention(ThreadPool& pool, Arena& scratch, const Tensor& q, const Tensor& kv_layer, const PagedIndex& index,
                     float scale, const Tensor& y);

// qkv [P,3,H,Dh], cu_seqlens [n+1] -> y [P,H,Dh].
void segment_attention(ThreadPool& pool, Arena& scratch, const Tensor& qkv, const Tensor& cu_seqlens, float scale,
                       const Tensor& y);

}  // namespace saccade::cpu
