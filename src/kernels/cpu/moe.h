// Mixture of experts without its products (linear.h has them). Shapes and contracts: ops/ops.h; callers have checked
// them.
#pragma once

#include "base/thread_pool.h"
#include "tensor/arena.h"

namespace saccade::cpu {

struct RouteArgs {
  bool sigmoid;    // softmax if not
  bool normalise;  // weights of a token divided by (their sum + 1e-20)
  float scale;     // then times this
};

void moe_route(ThreadPool& pool, Arena& scratch, const Tensor& x, const Tensor& gate, const Tensor& bias,
               const RouteArgs& args, const Tensor& weights, const Tensor& places, const Tensor& tokens,
               const Tensor& offsets);
void moe_combine(ThreadPool& pool, const Tensor& x, const Tensor& weights, const Tensor& places, const Tensor& y);

}  // namespace saccade::cpu
