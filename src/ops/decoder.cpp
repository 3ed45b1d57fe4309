#include <cmath>

#include "kernels/cuda/decode.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {
namespace {

[[maybe_unused]] cuda::Decoder cuda_decoder(const Decoder& d) {
  CHECK(d.layers.size() == d.kv_layers.size(), "{} layers, {} of the cache", d.layers.size(), d.kv_layers.size());
  return {.layers = d.layers.data(),
          .kv_layers = d.kv_layers.data(),
          .depth = static_cast<int64_t>(d.layers.size()),
          .heads = d.heads,
          .kv_heads = d.kv_heads,
          .head_dim = d.head_dim,
          .eps = d.eps,
          .norm = d.norm,
          .head = d.head};
}

}  // namespace

void decoder_layer_(const Ctx& c, const Decoder& d, size_t i, const PagedKv& kv, const Tensor& cos_sin,
                    const Tensor& h) {
  const DecoderLayer& layer = d.layers[i];
  const Tensor& cache = d.kv_layers[i];
  const auto scratch = c.arena.scope();
  const float scale = 1.0f / std::sqrt(static_cast<float>(d.head_dim));
  const Tensor qkv = linear(c, rms_norm(c, h, layer.attention_norm, d.eps), layer.qkv);
  const Tensor q = qkv_rope_append(c, qkv, cos_sin, cache, kv, d.heads, d.kv_heads);
  linear_add_(c, h, paged_attention(c, q, cache, kv, scale), layer.output);
  const Tensor gated = gate_up_silu(c, rms_norm(c, h, layer.mlp_norm, d.eps), layer.gate_up);
  linear_add_(c, h, gated, layer.down);
}

bool fuses_decode([[maybe_unused]] const Ctx& c, [[maybe_unused]] const Decoder& d, [[maybe_unused]] const PagedKv& kv,
                  [[maybe_unused]] int64_t rows) {
  if constexpr (kCuda) {
    if (c.cuda() && !c.on_tap && c.kept && kv.decodes == kv.kv_lens.dim(0) && rows == kv.decodes)
      return cuda::can_decode(cuda_decoder(d), rows);
  }
  return false;
}

Tensor decode(const Ctx& c, const Decoder& d, const PagedKv& kv, const Tensor& cos_sin, const Tensor& h) {
  Dim b{"B"}, width{"D"};
  expect(h, "h").shape(b, width).dtype(DType::kBF16).contiguous();
  expect(cos_sin, "cos_sin").shape(b, 2, d.head_dim / 2).dtype(DType::kF32).contiguous();
  const Tensor logits = c.arena.tensor(DType::kF32, {b, d.head.rows()});
  CHECK(c.cuda() && c.kept, "fused decoding is for CUDA devices");
  if constexpr (kCuda) {
    const cuda::Decoder decoder = cuda_decoder(d);
    const size_t bytes = cuda::decode_workspace_bytes(decoder, b, kv.page_table.dim(1));
    if (c.kept->size() < bytes) {
      device::synchronize(c.stream);  // a step that still runs may use what is given back
      *c.kept = Buffer();
      *c.kept = Buffer(bytes + bytes / 2, Memory::kCuda);
      device::fill_zero(c.kept->data(), c.kept->size(), c.stream);
    }
    const Tensor workspace(c.kept->data(), DType::kU8, {static_cast<int64_t>(c.kept->size())});
    cuda::decode(c.stream, decoder, {h, cos_sin, kv.slots, cuda_paged(kv), logits, workspace});
  }
  return logits;
}

}  // namespace saccade::ops
