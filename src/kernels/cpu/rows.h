// Ops that treat each row of the activations by itself. Shapes and contracts: ops/ops.h; callers have checked them.
#pragma once

#include <span>

#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace saccade::cpu {

void embed(ThreadPool& pool, const Tensor& table, const Tensor& ids, const Tensor& y);
void gather_rows(ThreadPool& pool, const Tensor& x, const Tensor& index, const Tensor& y);
void rms_norm(ThreadPool& pool, const Tensor& x, const Tensor& w, float eps, const Tensor& y);
void layer_norm(ThreadPool& pool, const Tensor& x, const Tensor& w, const Tensor& b, float eps, const Tensor& y);
void gelu(ThreadPool& pool, const Tensor& x, const Tensor& y);
void gelu_tanh(ThreadPool& pool, const Tensor& x, const Tensor& y);
void add_rows(ThreadPool& pool, const Tensor& h, const Tensor& rows);
void unfold(ThreadPool& pool, const Tensor& x, int64_t k, const Tensor& y);

// y [T, 2, Dh/2] F32, values rounded to `dtype`.
void rope_table(ThreadPool& pool, const Tensor& positions, std::span<const int64_t> sections, double theta, DType dtype,
                const Tensor& y);
void vision_rope_table(ThreadPool& pool, const Tensor& positions, double theta, const Tensor& y);

// q [T,H,Dh] is written; k and v go to kv_layer [pages, 2, K, 64, Dh] at slots [T].
void qkv_rope_append(ThreadPool& pool, const Tensor& qkv, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& kv_layer, const Tensor& q);
void vision_rope(ThreadPool& pool, const Tensor& qkv, const Tensor& cos_sin);

}  // namespace saccade::cpu
