#include "kernels/cpu/moe.h"

#include <limits>

#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {

Routes moe_route(const Ctx& c, const Tensor& x, const Tensor& gate, const Tensor& bias, const Routing& routing) {
  Dim t{"T"}, d{"D"}, e{"E"};
  expect(x, "x").shape(t, d).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(gate, "gate").shape(e, d).dtype(DType::kF32, DType::kBF16).contiguous();
  if (bias) expect(bias, "bias").shape(e).dtype(DType::kF32, DType::kBF16).contiguous();
  const int64_t k = routing.top_k;
  CHECK(k >= 1 && k <= e, "{} of {} experts", k, e.size);
  CHECK(t <= std::numeric_limits<int32_t>::max() / k, "{} experts for {} tokens", k, t.size);
  Routes r;
  r.weights = c.arena.tensor(DType::kF32, {t, k});
  r.places = c.arena.tensor(DType::kI32, {t, k});
  r.tokens = c.arena.tensor(DType::kI32, {t * k});
  r.offsets = c.arena.tensor(DType::kI32, {e + 1});
  cpu::moe_route(c.pool, c.arena, x, gate, bias,
                 {routing.score == Routing::Score::kSigmoid, routing.normalise, routing.scale}, r.weights, r.places,
                 r.tokens, r.offsets);
  return r;
}

Tensor moe_combine(const Ctx& c, const Tensor& x, const Routes& routes) {
  Dim t{"T"}, k{"k"}, d{"D"};
  expect(routes.weights, "weights").shape(t, k).dtype(DType::kF32).contiguous();
  expect(routes.places, "places").shape(t, k).dtype(DType::kI32).contiguous();
  expect(x, "x").shape(t * k, d).dtype(DType::kF32, DType::kBF16).contiguous();
  Tensor y = c.arena.tensor(x.dtype, {t, d});
  cpu::moe_combine(c.pool, x, routes.weights, routes.places, y);
  return y;
}

}  // namespace saccade::ops
