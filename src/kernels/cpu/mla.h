// Multi-head latent attention. Shapes and contracts: ops/ops.h.
#pragma once

#include "kernels/cpu/attention.h"
#include "tensor/weight.h"

namespace saccade::cpu {

void mla_rope_append(ThreadPool& pool, const Tensor& q, const Tensor& kv_a, const Tensor& norm, float eps,
                     const Tensor& cos_sin, const Tensor& slots, const Tensor& kv_layer);

// q [T,H,N+R], kv_b [H*(N+Dv), C], kv_layer [pages, 64, C+R] -> y [T,H,Dv].
void mla_absorbed(ThreadPool& pool, Arena& scratch, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                  const PagedIndex& index, float scale, const Tensor& y);
void mla_expanded(ThreadPool& pool, Arena& scratch, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                  const PagedIndex& index, float scale, const Tensor& y);

}  // namespace saccade::cpu
