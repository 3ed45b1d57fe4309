#include "kernels/cpu/rows.h"

#include <cstring>
#include <numeric>

#include "kernels/cuda/rows.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {

Tensor upload(const Ctx& c, const Tensor& host) {
  if (!c.cuda()) return host;
  const Tensor y = c.arena.tensor(host.dtype, {host.shape.data(), static_cast<size_t>(host.rank)});
  upload_(c, y, host);
  return y;
}

void upload_(const Ctx& c, const Tensor& to, const Tensor& host) {
  CHECK(to.contiguous() && host.contiguous() && to.dtype == host.dtype && to.numel() == host.numel(), "{} from {}",
        to.describe(), host.describe());
  if (!c.cuda())
    std::memcpy(to.data, host.data, to.bytes());
  else if (c.staging)
    c.staging->copy(to.data, host.data, host.bytes(), c.stream);
  else
    device::copy(to.data, host.data, host.bytes(), c.stream);
}

void fetch_(const Ctx& c, const Tensor& to, const Tensor& from, const Tensor& ids, const Tensor& chosen) {
  Dim n{"N"}, t{"T"}, r{"R"};
  expect(to, "to").shape(n).dtype(DType::kI32).contiguous();
  expect(from, "from").shape(n).dtype(DType::kI32).contiguous();
  expect(ids, "ids").shape(t).dtype(DType::kI32).contiguous();
  expect(chosen, "chosen").shape(r).dtype(DType::kI32).contiguous();
  CHECK(c.cuda(), "the CPU reads what the host writes");
  if constexpr (kCuda) cuda::fetch(c.stream, from, to, ids, chosen);
}

Tensor embed(const Ctx& c, const Tensor& table, const Tensor& ids, DType dtype) {
  Dim v{"V"}, d{"D"}, t{"T"};
  expect(table, "table").shape(v, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(ids, "ids").shape(t).dtype(DType::kI32).contiguous();
  Tensor y = c.arena.tensor(dtype, {t, d});
  expect(y, "y").dtype(DType::kF32, DType::kBF16);
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::embed(c.stream, table, ids, y), y;
  }
  cpu::embed(c.pool, table, ids, y);
  return y;
}

void copy_(const Ctx& c, const Tensor& to, const Tensor& from) {
  CHECK(to.contiguous() && from.contiguous() && to.dtype == from.dtype && to.numel() == from.numel(), "{} from {}",
        to.describe(), from.describe());
  if (c.cuda()) return device::copy(to.data, from.data, to.bytes(), c.stream);
  std::memcpy(to.data, from.data, to.bytes());
}

Tensor gather_rows(const Ctx& c, const Tensor& x, const Tensor& index) {
  Dim n{"N"}, d{"D"}, m{"M"};
  expect(x, "x").shape(n, d).contiguous();
  expect(index, "index").shape(m).dtype(DType::kI32).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {m, d});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::gather_rows(c.stream, x, index, y), y;
  }
  cpu::gather_rows(c.pool, x, index, y);
  return y;
}

Tensor rms_norm(const Ctx& c, const Tensor& x, const Tensor& w, float eps) {
  Dim t{"T"}, d{"D"};
  expect(x, "x").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(w, "w").shape(d).dtype(x.dtype).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {t, d});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::rms_norm(c.stream, x, w, eps, y), y;
  }
  cpu::rms_norm(c.pool, x, w, eps, y);
  return y;
}

Tensor layer_norm(const Ctx& c, const Tensor& x, const Tensor& w, const Tensor& b, float eps) {
  Dim t{"T"}, d{"D"};
  expect(x, "x").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(w, "w").shape(d).dtype(x.dtype).contiguous();
  expect(b, "b").shape(d).dtype(x.dtype).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {t, d});
  cpu_only(c, "layer_norm");
  cpu::layer_norm(c.pool, x, w, b, eps, y);
  return y;
}

Tensor gelu(const Ctx& c, const Tensor& x) {
  Dim t{"T"}, d{"D"};
  expect(x, "x").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {t, d});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::gelu(c.stream, x, y), y;
  }
  cpu::gelu(c.pool, x, y);
  return y;
}

Tensor gelu_tanh(const Ctx& c, const Tensor& x) {
  Dim t{"T"}, d{"D"};
  expect(x, "x").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {t, d});
  cpu_only(c, "gelu_tanh");
  cpu::gelu_tanh(c.pool, x, y);
  return y;
}

void add_rows_(const Ctx& c, const Tensor& h, const Tensor& rows) {
  Dim t{"T"}, d{"D"}, n{"N"};
  expect(h, "h").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(rows, "rows").shape(n, d).dtype(h.dtype).contiguous();
  CHECK(n > 0 && t % n == 0, "{} rows to add to {}", n.size, t.size);
  cpu_only(c, "add_rows_");
  cpu::add_rows(c.pool, h, rows);
}

Tensor unfold(const Ctx& c, const Tensor& x, int64_t k) {
  Dim n{"N"}, h{"h"}, w{"w"}, d{"D"};
  expect(x, "x").shape(n, h, w, d).dtype(DType::kF32, DType::kBF16).contiguous();
  CHECK(k > 0, "k {}", k);
  Tensor y = c.arena.tensor(x.dtype, {n, (h + k - 1) / k, (w + k - 1) / k, d * k * k});
  cpu_only(c, "unfold");
  cpu::unfold(c.pool, x, k, y);
  return y;
}

Tensor rope_table(const Ctx& c, const Tensor& positions, std::span<const int64_t> sections, double theta,
                  int64_t head_dim, DType dtype) {
  Dim t{"T"};
  expect(positions, "positions").shape(static_cast<int64_t>(sections.size()), t).dtype(DType::kI32).contiguous();
  CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim {}", head_dim);
  CHECK(std::accumulate(sections.begin(), sections.end(), int64_t{0}) == head_dim / 2, "sections {} do not sum to {}",
        shape_text(sections), head_dim / 2);
  Tensor y = c.arena.tensor(DType::kF32, {t, 2, head_dim / 2});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::rope_table(c.stream, positions, sections, theta, y), y;
  }
  cpu::rope_table(c.pool, positions, sections, theta, dtype, y);
  return y;
}

Tensor vision_rope_table(const Ctx& c, const Tensor& positions, double theta, int64_t head_dim) {
  Dim p{"P"};
  expect(positions, "positions").shape(2, p).dtype(DType::kI32).contiguous();
  CHECK(head_dim > 0 && head_dim % 4 == 0, "head_dim {}", head_dim);
  Tensor y = c.arena.tensor(DType::kF32, {p, 2, head_dim / 2});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::vision_rope_table(c.stream, positions, theta, y), y;
  }
  cpu::vision_rope_table(c.pool, positions, theta, y);
  return y;
}

Tensor qkv_rope_append(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin, const Tensor& kv_layer,
                       const PagedKv& kv, int64_t heads, int64_t kv_heads) {
  Dim t{"T"}, pages{"pages"}, dh{"Dh"};
  expect(kv_layer, "kv_layer").shape(pages, 2, kv_heads, kPageTokens, dh).dtype(qkv.dtype).contiguous();
  expect(qkv, "qkv").shape(t, (heads + 2 * kv_heads) * dh).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(cos_sin, "cos_sin").shape(t, 2, dh / 2).dtype(DType::kF32).contiguous();
  expect(kv.slots, "slots").shape(t).dtype(DType::kI32).contiguous();
  Tensor q = c.arena.tensor(qkv.dtype, {t, heads, dh});
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::qkv_rope_append(c.stream, qkv, cos_sin, kv.slots, kv_layer, q), q;
  }
  cpu::qkv_rope_append(c.pool, qkv, cos_sin, kv.slots, kv_layer, q);
  return q;
}

void vision_rope_(const Ctx& c, const Tensor& qkv, const Tensor& cos_sin) {
  Dim p{"P"}, h{"H"}, dh{"Dh"};
  expect(qkv, "qkv").shape(p, 3, h, dh).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(cos_sin, "cos_sin").shape(p, 2, dh / 2).dtype(DType::kF32).contiguous();
  cpu_only(c, "vision_rope_");
  cpu::vision_rope(c.pool, qkv, cos_sin);
}

}  // namespace saccade::ops
