#include "kernels/cpu/mla.h"

#include "ops/check_paged.h"
#include "ops/ops.h"

namespace saccade::ops {
namespace {

// Checks the operands of both forms and allocates what they give.
Tensor attention_output(const Ctx& c, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer, const PagedKv& kv,
                        int64_t value_dim) {
  Dim t{"T"}, h{"H"}, d{"N + R"}, pages{"pages"}, row{"C + R"}, rows{"H * (N + Dv)"}, latent{"C"};
  expect(q, "q").shape(t, h, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(kv_layer, "kv_layer").shape(pages, kPageTokens, row).dtype(q.dtype).contiguous();
  CHECK(kv_b.format == Weight::Format::kDense && kv_b.parts == 1 && !kv_b.bias[0], "kv_b: one part and no bias");
  expect(kv_b.data[0], "kv_b").shape(rows, latent).dtype(DType::kBF16, q.dtype).contiguous();
  const int64_t turned = row - latent, plain = d - turned;
  CHECK(plain > 0 && turned > 0 && value_dim > 0 && rows == h * (plain + value_dim),
        "kv_b {}: {} heads, queries of {}, cache rows of {}, values of {}", kv_b.data[0].describe(), h.size, d.size,
        row.size, value_dim);
  CHECK(plain % 2 == 0 && turned % 2 == 0 && latent % 2 == 0, "N {}, R {} and C {} must be even", plain, turned,
        latent.size);
  check_paged(kv, t);
  return c.arena.tensor(q.dtype, {t, h * value_dim});
}

}  // namespace

void mla_rope_append_(const Ctx& c, const Tensor& q, const Tensor& kv_a, const Tensor& norm, float eps,
                      const Tensor& cos_sin, const Tensor& kv_layer, const PagedKv& kv) {
  Dim t{"T"}, h{"H"}, d{"N + R"}, row{"C + R"}, latent{"C"}, pages{"pages"};
  expect(q, "q").shape(t, h, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(kv_a, "kv_a").shape(t, row).dtype(q.dtype).contiguous();
  expect(norm, "norm").shape(latent).dtype(q.dtype).contiguous();
  const int64_t turned = row - latent;
  CHECK(turned > 0 && turned % 2 == 0 && turned <= d, "{} turned values of queries of {}", turned, d.size);
  expect(cos_sin, "cos_sin").shape(t, 2, turned / 2).dtype(DType::kF32).contiguous();
  expect(kv_layer, "kv_layer").shape(pages, kPageTokens, row).dtype(q.dtype).contiguous();
  expect(kv.slots, "slots").shape(t).dtype(DType::kI32).contiguous();
  cpu::mla_rope_append(c.pool, q, kv_a, norm, eps, cos_sin, kv.slots, kv_layer);
}

Tensor mla_absorbed_attention(const Ctx& c, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                              const PagedKv& kv, int64_t value_dim, float scale) {
  Tensor y = attention_output(c, q, kv_b, kv_layer, kv, value_dim);
  cpu::mla_absorbed(c.pool, c.arena, q, kv_b, kv_layer, {kv.q_offsets, kv.kv_lens, kv.page_table}, scale,
                    y.reshaped({q.dim(0), q.dim(1), value_dim}));
  return y;
}

Tensor mla_expanded_attention(const Ctx& c, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                              const PagedKv& kv, int64_t value_dim, float scale) {
  Tensor y = attention_output(c, q, kv_b, kv_layer, kv, value_dim);
  cpu::mla_expanded(c.pool, c.arena, q, kv_b, kv_layer, {kv.q_offsets, kv.kv_lens, kv.page_table}, scale,
                    y.reshaped({q.dim(0), q.dim(1), value_dim}));
  return y;
}

}  // namespace saccade::ops
