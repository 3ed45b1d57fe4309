#include "kernels/cpu/attention.h"

#include "kernels/cuda/attention.h"
#include "ops/check_paged.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {

Tensor paged_attention(const Ctx& c, const Tensor& q, const Tensor& kv_layer, const PagedKv& kv, float scale) {
  Dim t{"T"}, h{"H"}, dh{"Dh"}, pages{"pages"}, k{"K"};
  expect(q, "q").shape(t, h, dh).dtype(DType::kF32, DType::kBF16).contiguous();
  CHECK(dh % 2 == 0, "head dimension {}", dh.size);
  expect(kv_layer, "kv_layer").shape(pages, 2, k, kPageTokens, dh).dtype(q.dtype).contiguous();
  CHECK(h % k == 0, "{} query heads over {} kv heads", h.size, k.size);
  Tensor y = c.arena.tensor(q.dtype, {t, h * dh});
  if constexpr (kCuda) {
    if (c.cuda()) {
      CHECK(kv.longest_q > 0 && kv.longest_kv >= kv.longest_q, "{} rows, {} tokens", kv.longest_q, kv.longest_kv);
      cuda::paged_attention(c.stream, q, kv_layer, cuda_paged(kv), scale, y);
      return y;
    }
  }
  check_paged(kv, t);
  cpu::paged_attention(c.pool, c.arena, q, kv_layer, {kv.q_offsets, kv.kv_lens, kv.page_table}, scale,
                       y.reshaped({t, h, dh}));
  return y;
}

Tensor segment_attention(const Ctx& c, const Tensor& qkv, const Tensor& cu_seqlens, float scale) {
  Dim p{"P"}, h{"H"}, dh{"Dh"}, n{"n + 1"};
  expect(qkv, "qkv").shape(p, 3, h, dh).dtype(DType::kF32, DType::kBF16).contiguous();
  CHECK(dh % 2 == 0, "head dimension {}", dh.size);
  cpu_only(c, "segment_attention");
  expect(cu_seqlens, "cu_seqlens").shape(n).dtype(DType::kI32).contiguous();
  const auto* ends = cu_seqlens.as<int32_t>();
  CHECK(n >= 1 && ends[0] == 0 && ends[n - 1] == p, "cu_seqlens must run from 0 to {}", p.size);
  for (int64_t i = 1; i < n; ++i) CHECK(ends[i - 1] <= ends[i], "cu_seqlens falls at {}", i);
  Tensor y = c.arena.tensor(qkv.dtype, {p, h * dh});
  cpu::segment_attention(c.pool, c.arena, qkv, cu_seqlens, scale, y.reshaped({p, h, dh}));
  return y;
}

Tensor vision_attention(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin, const Segments& segments, float scale) {
  if constexpr (kCuda) {
    if (c.cuda()) {
      Dim p{"P"}, h{"H"}, dh{"Dh"};
      expect(qkv, "qkv").shape(p, 3, h, dh).dtype(DType::kBF16).contiguous();
      expect(cos_sin, "cos_sin").shape(p, 2, dh / 2).dtype(DType::kF32).contiguous();
      const Tensor y = c.arena.tensor(qkv.dtype, {p, h * dh});
      cuda::segment_attention(c.stream, qkv, cos_sin, segments.offsets, segments.longest, scale, y);
      return y;
    }
  }
  vision_rope_(c, qkv, cos_sin);
  return segment_attention(c, qkv, segments.offsets, scale);
}

}  // namespace saccade::ops
