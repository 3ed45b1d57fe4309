// Attention of prompts over the paged cache, and inside the vision tower. Tensors BF16, softmax and sums in float.
#pragma once

#include "kernels/cuda/stream.h"
#include "tensor/tensor.h"

namespace saccade::cuda {

// Where the rows of a step find their keys and values (ops/paged_kv.h); everything on the device, I32.
struct Paged {
  Tensor q_offsets;                       // [B+1]
  Tensor kv_lens;                         // [B]
  Tensor page_table;                      // [B, max_pages]
  int64_t longest_q = 0, longest_kv = 0;  // of any sequence
};

// Causal grouped-query attention: q [T,H,Dh] in paired order, kv_layer [pages, 2, K, 64, Dh] as in layout.h,
// y [T, H*Dh] in plain order. Row i of sequence b sees cache positions 0 .. kv_lens[b] - (rows of b) + i. Dh is 64 or
// 128. A row's result depends on its query and its cache alone, bit for bit: not on how a prompt is cut into chunks.
void paged_attention(Stream stream, const Tensor& q, const Tensor& kv_layer, const Paged& kv, float scale,
                     const Tensor& y);

// Full attention inside segments: qkv [P,3,H,Dh] in plain order, cu_seqlens [n+1] I32 on the device from 0 to P, no
// segment longer than `longest`; y [P, H*Dh]. Dh is a multiple of 8 up to 128. cos_sin [P,2,Dh/2] F32 turns q and k
// first (half-split pairs i, i + Dh/2; in float, rounded once), as ops::vision_rope_ does; without data, nothing is
// turned. qkv may be overwritten. A row's result depends on its segment alone, bit for bit.
void segment_attention(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                       int64_t longest, float scale, const Tensor& y);

}  // namespace saccade::cuda
