// The operations that models are written in. One signature each: shapes are checked here, outputs are allocated in
// ctx.arena, kernels do the work. Activations are F32 or BF16 ("the activation dtype" is that of x); sums are in
// float, and every result is rounded once to the activation dtype, at the same places as the reference does.
// Weights are F32 or BF16. Dimension letters: tensor/tensor.h. Ops whose name ends in _ work in place.
#pragma once

#include <span>

#include "ops/ctx.h"
#include "ops/paged_kv.h"
#include "tensor/weight.h"

namespace saccade::ops {

// y[t] = table[ids[t]] in `dtype`. table [V,D], ids [T] I32 (0 <= id < V, checked by the caller) -> [T,D].
Tensor embed(const Ctx& c, const Tensor& table, const Tensor& ids, DType dtype);

// to = from, both contiguous, same shape and dtype.
void copy_(const Ctx& c, const Tensor& to, const Tensor& from);

// y[i] = x[index[i]] over rows: x [N,D], index [M] I32 -> [M,D].
Tensor gather_rows(const Ctx& c, const Tensor& x, const Tensor& index);

// y = x W^T + b. x [T,K], w [N,K] -> [T,N] in x's dtype.
Tensor linear(const Ctx& c, const Tensor& x, const Weight& w);

// h += x W^T + b: the product is rounded to the activation dtype, then the sum. h [T,N], x [T,K].
void linear_add_(const Ctx& c, const Tensor& h, const Tensor& x, const Weight& w);

// silu(x Wg^T + bg) * (x Wu^T + bu), w = gate | up with F rows each: x [T,K] -> [T,F].
// Rounded after each linear, after silu and after the product.
Tensor gate_up_silu(const Ctx& c, const Tensor& x, const Weight& w);

// Logits for sampling: x [T,K], w [V,K] -> F32 [T,V], rounded to x's dtype first (as a reference in bf16 does).
Tensor logits(const Ctx& c, const Tensor& x, const Weight& w);

// y = round(x / sqrt(mean(x^2) + eps)) * w: x [T,D], w [D] of x's dtype -> [T,D]. Rounds before and after the weight.
Tensor rms_norm(const Ctx& c, const Tensor& x, const Tensor& w, float eps);

// Exact (erf) GELU: x [T,D] -> [T,D].
Tensor gelu(const Ctx& c, const Tensor& x);

// cos | sin of positions * theta^(-2j/Dh), j < Dh/2, rounded to `dtype` and stored as F32: [T, 2, Dh/2].
// positions [3,T] I32 (time, height, width); frequency j takes its position from the section it falls in:
// `sections` are three counts that sum to Dh/2, contiguous (time first). transformers qwen2_5_vl, M-RoPE.
Tensor mrope_table(const Ctx& c, const Tensor& positions, std::span<const int64_t> sections, double theta,
                   int64_t head_dim, DType dtype);

// Two-dimensional rope of the vision tower: positions [2,P] I32 (row, column) -> [P, 2, Dh/2] F32; the first half of
// the frequencies turns with the row, the second with the column; f_j = theta^(-2j/(Dh/2)), j < Dh/4. Not rounded.
Tensor vision_rope_table(const Ctx& c, const Tensor& positions, double theta, int64_t head_dim);

// Splits qkv [T, (H+2K)*Dh] (q | k | v), turns q and k by cos_sin [T,2,Dh/2] (half-split pairs i, i+Dh/2; each product
// and the sum rounded to the activation dtype), writes k and v into kv_layer [pages, 2, K, 64, Dh] at kv.slots, and
// returns q [T,H,Dh].
Tensor qkv_rope_append(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin, const Tensor& kv_layer,
                       const PagedKv& kv, int64_t heads, int64_t kv_heads);

// Causal grouped-query attention over the paged cache: q [T,H,Dh], kv_layer [pages, 2, K, 64, Dh] -> [T, H*Dh].
// Row i of sequence b sees cache positions 0 .. kv_lens[b] - (rows of b) + i. Softmax in float.
Tensor paged_attention(const Ctx& c, const Tensor& q, const Tensor& kv_layer, const PagedKv& kv, float scale);

// Turns q and k of qkv [P,3,H,Dh] in place by cos_sin [P,2,Dh/2], in float, rounded once.
void vision_rope_(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin);

// Full attention inside each segment [cu_seqlens[i], cu_seqlens[i+1]) of the P rows: qkv [P,3,H,Dh],
// cu_seqlens [n+1] I32 -> [P, H*Dh].
Tensor segment_attention(const Ctx& c, const Tensor& qkv, const Tensor& cu_seqlens, float scale);

}  // namespace saccade::ops
