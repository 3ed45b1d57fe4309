// The operations that models are written in. One signature each: shapes are checked here, outputs are allocated in
// ctx.arena, kernels do the work. Activations are F32 or BF16 ("the activation dtype" is that of x); sums are in
// float, and every result is rounded once to the activation dtype, at the same places as the reference does.
// Weights are F32 or BF16. Dimension letters: tensor/tensor.h. Ops whose name ends in _ work in place.
#pragma once

#include <span>

#include "kernels/cuda/decode.h"
#include "kernels/cuda/preprocess.h"
#include "kernels/cuda/sampling.h"
#include "ops/ctx.h"
#include "ops/paged_kv.h"
#include "tensor/weight.h"

namespace saccade::ops {

// The values of a host tensor where ops can use them: itself, or a copy in the memory of the device.
Tensor upload(const Ctx& c, const Tensor& host);
void upload_(const Ctx& c, const Tensor& to, const Tensor& host);  // to = host

// to = from, both [N] I32 with 4 dividing N, on a CUDA device, from pinned memory of the host. Where `ids`, a part of
// `to`, gets -1 - i, it becomes chosen[i]: a token that only the device knows yet.
void fetch_(const Ctx& c, const Tensor& to, const Tensor& from, const Tensor& ids, const Tensor& chosen);

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

// y = round((x - mean) / sqrt(variance + eps) * w + b), in float: x [T,D], w and b [D] of x's dtype -> [T,D].
Tensor layer_norm(const Ctx& c, const Tensor& x, const Tensor& w, const Tensor& b, float eps);

// Exact (erf) GELU: x [T,D] -> [T,D].
Tensor gelu(const Ctx& c, const Tensor& x);

// GELU by tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): x [T,D] -> [T,D].
Tensor gelu_tanh(const Ctx& c, const Tensor& x);

// h[t] += rows[t mod N], rounded: h [T,D], rows [N,D] of h's dtype, N divides T.
void add_rows_(const Ctx& c, const Tensor& h, const Tensor& rows);

// k x k neighbours side by side: x [N,h,w,D] -> [N, ceil(h/k), ceil(w/k), D*k*k], zeros beyond the edges, values of one
// output in the order (channel, row, column).
Tensor unfold(const Ctx& c, const Tensor& x, int64_t k);

// cos | sin of positions * theta^(-2j/Dh), j < Dh/2, rounded to `dtype` and stored as F32: [T, 2, Dh/2].
// positions [A,T] I32: frequency j takes its position from the axis of the section it falls in; `sections` are A counts
// that sum to Dh/2. One axis is ordinary rope; three (time, height, width) are Qwen2.5-VL's M-RoPE.
Tensor rope_table(const Ctx& c, const Tensor& positions, std::span<const int64_t> sections, double theta,
                  int64_t head_dim, DType dtype);

// Two-dimensional rope of a vision tower: positions [2,P] I32 (row, column) -> [P, 2, Dh/2] F32; the first half of
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

// Segments of rows, as far as an op needs to know them before it looks at the device.
struct Segments {
  Tensor offsets;       // [n+1] I32: segment i is rows [offsets[i], offsets[i+1])
  int64_t longest = 0;  // rows of any segment
};

// segment_attention after vision_rope_. qkv may be overwritten.
Tensor vision_attention(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin, const Segments& segments, float scale);

// Full attention inside each segment [cu_seqlens[i], cu_seqlens[i+1]) of the P rows: qkv [P,3,H,Dh],
// cu_seqlens [n+1] I32 -> [P, H*Dh].
Tensor segment_attention(const Ctx& c, const Tensor& qkv, const Tensor& cu_seqlens, float scale);

// Pictures on a CUDA device; the host's forms are media::resize_bicubic and a model's preprocessing, bit-equal.
// rgb [F,h,w,3] U8 -> [F,oh,ow,3] by the taps of each axis, none where it keeps its size; the order of the passes is
// that of media::down_before_across.
using cuda::ResizeAxis;
Tensor resize_bicubic(const Ctx& c, const Tensor& rgb, const ResizeAxis& x, const ResizeAxis& y, bool down_first);
// frames [F, gh*patch, gw*patch, 3] U8 -> [gt*gh*gw, 3*temporal*patch*patch] BF16 by levels [3,256], in the order of
// cuda::patchify; gt*temporal is F, or F with its last frame repeated.
Tensor patchify(const Ctx& c, const Tensor& frames, const Tensor& levels, int patch, int merge, int temporal);

// A dense decoder over the paged cache, as Qwen2.5, Llama and kin have it:
//   h += attention(qkv(norm(h))) W_o^T;  h += gate_up_silu(norm(h)) W_down^T;  logits of norm(h)
using cuda::DecoderLayer;  // its norms and weights
struct Decoder {
  std::span<const DecoderLayer> layers;
  std::span<const Tensor> kv_layers;  // [pages, 2, K, 64, Dh] of each layer
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float eps = 0;
  Tensor norm;  // [D]
  Weight head;  // [V,D]
};

// Layer i over h [T,D] in place, made of the ops above; cos_sin [T,2,Dh/2].
void decoder_layer_(const Ctx& c, const Decoder& d, size_t i, const PagedKv& kv, const Tensor& cos_sin,
                    const Tensor& h);
// All layers and the logits F32 [B,V] of a step in which every sequence generates one token, fused for a few sequences.
// Only where fuses_decode() says so: on a CUDA device. h [B,D] is overwritten.
bool fuses_decode(const Ctx& c, const Decoder& d, const PagedKv& kv, int64_t rows);
Tensor decode(const Ctx& c, const Decoder& d, const PagedKv& kv, const Tensor& cos_sin, const Tensor& h);

// The next token of each row of logits [R,V] F32 to ids [R] I32 and the same to ids_for_host, on a CUDA device
// (kernels/cuda/sampling.h). rows [R, bytes of SampleRow] U8, seen [n, ceil(V/32)] I32 bitmaps that rows name. rows and
// ids_for_host may be pinned memory.
using cuda::SampleRow;
void sample_(const Ctx& c, const Tensor& logits, const Tensor& rows, const Tensor& seen, bool all_greedy,
             const Tensor& ids, const Tensor& ids_for_host);

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). Every head of a query has N plain values
// and R that turn with the position; the cache holds C + R values a token: the latent c, from which the keys and values
// of all heads are made, and one turned key that all heads share. kv_b [H*(N+Dv), C] has for each head N rows W_UK,
// then Dv rows W_UV: key = W_UK c | turned key, value = W_UV c.

// Turns the last R values of every head of q [T,H,N+R] in place, and writes a token's latent and shared key: kv_a
// [T,C+R] -> kv_layer [pages, 64, C+R] at kv.slots as rms_norm(first C; norm [C], eps) | turned last R. cos_sin
// [T,2,R/2]; the turned pairs are neighbours (2i, 2i+1), and the results are stored apart (i, i+R/2); rounded as in
// qkv_rope_append.
void mla_rope_append_(const Ctx& c, const Tensor& q, const Tensor& kv_a, const Tensor& norm, float eps,
                      const Tensor& cos_sin, const Tensor& kv_layer, const PagedKv& kv);

// Causal attention of q [T,H,N+R] over the latents: -> [T, H*Dv]. Two forms of one formula, for any rows:
// absorbed multiplies W_UK into the query and W_UV into the sum of latents, so that a query reads C + R values a token;
// expanded first makes keys and values of all tokens, which costs less for many queries.
// Roundings to the activation dtype: q W_UK and the weighted latents; keys and values. Scores and softmax in float.
Tensor mla_absorbed_attention(const Ctx& c, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                              const PagedKv& kv, int64_t value_dim, float scale);
Tensor mla_expanded_attention(const Ctx& c, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                              const PagedKv& kv, int64_t value_dim, float scale);

// Mixture of experts: which k of E experts each token goes to, and the same choices grouped by expert.
struct Routing {
  enum class Score : uint8_t { kSoftmax, kSigmoid };
  Score score = Score::kSoftmax;
  int64_t top_k = 1;
  bool normalise = false;  // weights of a token divided by (their sum + 1e-20)
  float scale = 1;         // then times this
};
struct Routes {
  Tensor weights;  // [T,k] F32, best first
  Tensor places;   // [T,k] I32: the grouped row of each choice
  Tensor tokens;   // [T*k] I32: the token of each grouped row; rising within an expert
  Tensor offsets;  // [E+1] I32: grouped rows [offsets[e], offsets[e+1]) belong to expert e
};

// scores = softmax or sigmoid of x gate^T, in float with nothing rounded: x [T,D], gate [E,D]. The k best by score +
// bias (bias [E] of any float dtype, or empty) are chosen, the lower expert first where equal; weights come from
// scores.
Routes moe_route(const Ctx& c, const Tensor& x, const Tensor& gate, const Tensor& bias, const Routing& routing);

// The same as gate_up_silu and linear, by experts: grouped row r uses the weight of its expert. x [T,D] -> [T*k, F],
// row r from token tokens[r]; x [T*k, F] -> [T*k, D]. Only experts that have rows are read.
Tensor grouped_gate_up_silu(const Ctx& c, const Tensor& x, const Routes& routes, std::span<const Weight> experts);
Tensor grouped_linear(const Ctx& c, const Tensor& x, const Routes& routes, std::span<const Weight> experts);

// y[t] = round(sum over j of weights[t,j] * x[places[t,j]]), in float and in this order: x [T*k, D] -> [T,D].
Tensor moe_combine(const Ctx& c, const Tensor& x, const Routes& routes);

}  // namespace saccade::ops
