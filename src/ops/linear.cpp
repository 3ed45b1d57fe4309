#include "kernels/cpu/linear.h"

#include "kernels/cuda/linear.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {
namespace {

constexpr int64_t kStripBlock = 64;  // columns

// By the kernel of the device.
void product(const Ctx& c, const Tensor& x, const Weight& w, const Tensor& y, cpu::LinearOut out,
             [[maybe_unused]] cuda::LinearOut cuda_out) {
  if constexpr (kCuda) {
    if (c.cuda()) return cuda::linear(c.stream, x, w, y, cuda_out);
  }
  cpu::linear(c.pool, c.arena, x, w, y, out);
}

// x [T,K] and w [N,K]; binds T, N and K.
void check(const Tensor& x, const Weight& w, Dim& t, Dim& n, Dim& k) {
  expect(x, "x").shape(t, k).dtype(DType::kF32, DType::kBF16).contiguous();
  if (w.format == Weight::Format::kStrips) {
    // Padding of gate | up passes on to the next matrix, which has zeros for it.
    CHECK(x.dtype == DType::kBF16 && k >= w.cols() && k <= w.data[0].dim(1) * kStripBlock, "w: [{}, {}] for x of {}",
          w.rows(), w.cols(), x.describe());
    n.size = w.rows();
    return;
  }
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

void check_gate_up(const Weight& w) {
  if (w.format == Weight::Format::kStrips) {
    CHECK(w.order == Weight::RowOrder::kGateUp, "w: rows of gate and up in pairs expected");
    return;
  }
  CHECK(w.parts == 2 && w.data[0].dim(0) == w.data[1].dim(0), "w: gate | up expected, {} parts, {} rows", w.parts,
        w.rows());
}

// The experts that have rows, all alike; offsets that end at `rows`. Binds T and K by x, N by the experts.
void check(const Tensor& x, const Routes& routes, std::span<const Weight> experts, int64_t rows, Dim& t, Dim& n,
           Dim& k) {
  expect(x, "x").shape(t, k);
  expect(routes.offsets, "offsets").shape(static_cast<int64_t>(experts.size()) + 1).dtype(DType::kI32).contiguous();
  CHECK(!experts.empty() && experts[0].parts >= 1, "no experts");
  n.size = experts[0].rows();
  const auto* offsets = routes.offsets.as<int32_t>();
  CHECK(offsets[0] == 0 && offsets[experts.size()] == rows, "offsets from {} to {}, {} rows", offsets[0],
        offsets[experts.size()], rows);
  for (size_t e = 0; e < experts.size(); ++e) {
    CHECK(offsets[e] <= offsets[e + 1], "offsets of expert {}: {} to {}", e, offsets[e], offsets[e + 1]);
    if (offsets[e] == offsets[e + 1]) continue;
    Dim expert_n{"N"};
    check(x, experts[e], t, expert_n, k);
    CHECK(expert_n == n && experts[e].data[0].dtype == experts[0].data[0].dtype, "expert {}: {} rows, {} expected", e,
          expert_n.size, n.size);
  }
}

}  // namespace

Tensor linear(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  Tensor y = c.arena.tensor(x.dtype, {t, n});
  product(c, x, w, y, cpu::LinearOut::kStore, cuda::LinearOut::kStore);
  return y;
}

void linear_add_(const Ctx& c, const Tensor& h, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  expect(h, "h").shape(t, n).dtype(x.dtype).contiguous();
  product(c, x, w, h, cpu::LinearOut::kAdd, cuda::LinearOut::kAdd);
}

Tensor gate_up_silu(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"N"}, k{"K"};
  check(x, w, t, n, k);
  check_gate_up(w);
  Tensor y = c.arena.tensor(x.dtype, {t, n / 2});
  product(c, x, w, y, cpu::LinearOut::kGateUpSilu, cuda::LinearOut::kGateUpSilu);
  return y;
}

Tensor grouped_linear(const Ctx& c, const Tensor& x, const Routes& routes, std::span<const Weight> experts) {
  Dim t{"T*k"}, n{"N"}, k{"K"};
  check(x, routes, experts, x.dim(0), t, n, k);
  Tensor y = c.arena.tensor(x.dtype, {t, n});
  cpu_only(c, "grouped_linear");
  cpu::grouped_linear(c.pool, c.arena, x, {}, routes.offsets, experts, y, cpu::LinearOut::kStore);
  return y;
}

Tensor grouped_gate_up_silu(const Ctx& c, const Tensor& x, const Routes& routes, std::span<const Weight> experts) {
  Dim t{"T"}, n{"N"}, k{"K"}, choices{"T*k"};
  expect(routes.tokens, "tokens").shape(choices).dtype(DType::kI32).contiguous();
  check(x, routes, experts, choices, t, n, k);
  for (const Weight& w : experts) check_gate_up(w);
  Tensor y = c.arena.tensor(x.dtype, {choices, n / 2});
  cpu_only(c, "grouped_gate_up_silu");
  cpu::grouped_linear(c.pool, c.arena, x, routes.tokens, routes.offsets, experts, y, cpu::LinearOut::kGateUpSilu);
  return y;
}

Tensor logits(const Ctx& c, const Tensor& x, const Weight& w) {
  Dim t{"T"}, n{"V"}, k{"K"};
  check(x, w, t, n, k);
  Tensor y = c.arena.tensor(DType::kF32, {t, n});
  product(c, x, w, y, cpu::LinearOut::kFloat, cuda::LinearOut::kFloat);
  return y;
}

}  // namespace saccade::ops
