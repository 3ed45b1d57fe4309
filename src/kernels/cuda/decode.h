// One token for each of a few sequences through a whole dense decoder (Qwen2.5, Llama and kin).
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/stream.h"
#include "tensor/weight.h"

namespace saccade::cuda {

struct DecoderLayer {
  Tensor attention_norm, mlp_norm;    // [D]
  Weight qkv, output, gate_up, down;  // strips; order kRope, kPlain, kGateUp, kPlain; only qkv may have a bias
};

struct Decoder {
  const DecoderLayer* layers = nullptr;  // [L]
  const Tensor* kv_layers = nullptr;     // [L] of [pages, 2, K, 64, Dh]
  int64_t depth = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float eps = 0;
  Tensor norm;  // [D]
  Weight head;  // [V,D] strips
};

// What changes with a step; on the device. B rows, one for each sequence.
struct DecodeStep {
  Tensor h;          // [B,D] BF16: embeddings; overwritten
  Tensor cos_sin;    // [B,2,Dh/2] F32
  Tensor slots;      // [B] I32: page * 64 + place where each row's key and value are written
  Paged kv;          // q_offsets is not read
  Tensor logits;     // [B,V] F32, rounded to bf16
  Tensor workspace;  // decode_workspace_bytes, zeroed once when allocated
};

// Row b depends on sequence b alone, bit for bit: not on B nor on its place, among B <= 8; and among larger B.
// Rounding as in ops: after each norm (twice), product, rope product and sum, attention, silu, product and residual
// sum.
bool can_decode(const Decoder& d, int64_t rows);  // shapes, device, 1 <= rows <= 64
size_t decode_workspace_bytes(const Decoder& d, int64_t max_rows, int64_t max_pages);
void decode(Stream stream, const Decoder& d, const DecodeStep& step);

// The two forms of it: one persistent kernel for up to 8 rows; for up to 64 another one, or, where the device is not
// Hopper, a chain of kernels.
bool can_decode_persistent(const Decoder& d, int64_t rows);
size_t persistent_workspace_bytes(const Decoder& d);
void decode_persistent(Stream stream, const Decoder& d, const DecodeStep& step);
bool can_decode_chained(const Decoder& d, int64_t rows);
size_t chained_workspace_bytes(const Decoder& d, int64_t max_rows, int64_t max_pages);
void decode_chained(Stream stream, const Decoder& d, const DecodeStep& step);

}  // namespace saccade::cuda
