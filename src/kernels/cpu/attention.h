// Softmax attention over the paged cache and inside segments. Shapes and contracts: ops/ops.h.
#pragma once

#include "base/thread_pool.h"
#include "tensor/arena.h"

namespace saccade::cpu {

// The index tensors of ops/paged_kv.h that attention needs.
struct PagedIndex {
  Tensor q_offsets, kv_lens, page_table;
};

// Where causal attention finds its keys and values: those of kv head h start h * head_stride elements after the first.
struct CausalKeys {
  const void *k, *v;
  int64_t heads, head_stride;
  bool paged;  // a block is a page of the sequence's row of the page table; else block i is the i-th from k and v on
  int64_t block_stride, token_stride;
  // The last tail_dim values of the keys, the same for all heads, in the same pages; none where tail_dim is 0.
  const void* tail;
  int64_t tail_dim, tail_block_stride, tail_token_stride;
};

// q [T,H,Dk] -> y [T,H,Dv]. Keys that are not paged are for one sequence.
void causal_attention(ThreadPool& pool, Arena& scratch, const Tensor& q, const CausalKeys& keys,
                      const PagedIndex& index, float scale, const Tensor& y);

// q [T,H,Dh], kv_layer [pages, 2, K, 64, Dh] -> y [T,H,Dh].
void paged_attention(ThreadPool& pool, Arena& scratch, const Tensor& q, const Tensor& kv_layer, const PagedIndex& index,
                     float scale, const Tensor& y);

// qkv [P,3,H,Dh], cu_seqlens [n+1] -> y [P,H,Dh].
void segment_attention(ThreadPool& pool, Arena& scratch, const Tensor& qkv, const Tensor& cu_seqlens, float scale,
                       const Tensor& y);

}  // namespace saccade::cpu
