#include "kernels/cpu/linear.h"

#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {
namespace {

// x [T,K] and w [N,K]; binds T, N and K.
void check(const Tensor& x, const Weight& w, Dim& t, Dim& n, Dim& k) {
  expect(x, "x").shape(t, k).dtype(DType::kF32, DType::kBF16).contiguous();
  CHECK(w.parts >= 1 && w.parts <= Weight::kMaxParts, "w: {} parts", w.parts);
  const DType dtype = w.data[0].dtype;
  CHECK(dtype == DType::kBF16 || (dtype == DType::kF32 && x.dtype == DType::kF32), "w: {} for x of {}",
        dtype_name(dtype), x.describe());
  for (size_t i = 0; i < static_cast<size_t>(w.parts); ++i) {
    expect(w.data[i], "w").shape(w.data[i].dim(0), k).dtype(dtype).contiguous();
    if (w.bias[i]) expect(w.bias[i], "bias").shape(w.data[i].dim(0)).dtype(dtype).contiguous();
  }
  n.size = w.rows();
}

}  // namespace

Tensor linear(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  Tensor y = c.arena.tensor(x.dtype, {t, n});
  cpu::linear(c.pool, c.arena, x, w, y, cpu::LinearOut::kStore);
  return y;
}

void linear_add_(const Ctx& c, const Tensor& h, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  expect(h, "h").shape(t, n).dtype(x.dtype).contiguous();
  cpu::linear(c.pool, c.arena, x, w, h, cpu::LinearOut::kAdd);
}

Tensor gate_up_silu(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  CHECK(w.parts == 2 && w.data[0].dim(0) == w.data[1].dim(0), "w: gate | up expected, {} parts, {} rows", w.parts,
        w.rows());
  Tensor y = c.arena.tensor(x.dtype, {t, n / 2});
  cpu::linear(c.pool, c.arena, x, w, y, cpu::LinearOut::kGateUpSilu);
  return y;
}

Tensor logits(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"V"}, k{"K"};
  check(x, w, t, n, k);
  Tensor y = c.arena.tensor(DType::kF32, {t, n});
  cpu::linear(c.pool, c.arena, x, w, y, cpu::LinearOut::kFloat);
  return y;
}

}  // namespace saccade::ops
