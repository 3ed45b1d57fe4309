// Matrix products with the weights as stored: y = x W^T + b and what is fused behind it.
#pragma once

#include <span>

#include "base/thread_pool.h"
#include "tensor/arena.h"
#include "tensor/weight.h"

namespace saccade::cpu {

enum class LinearOut {
  kStore,       // y [T,N] = round(sum)
  kAdd,         // y [T,N] = round(y + round(sum))
  kFloat,       // y [T,N] F32 = round(sum), rounded to x's dtype
  kGateUpSilu,  // y [T,F] = round(round(silu(round(gate))) * round(up)); w is gate | up, two parts of F rows
};

// x [T,K] contiguous, F32 or BF16; w BF16, or F32 where x is F32; y contiguous in x's dtype unless said otherwise.
// Row t of y depends on row t of x alone, bit for bit: not on T, nor on the number of threads.
void linear(ThreadPool& pool, Arena& scratch, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out);

// The same with a weight for each group of rows: rows [offsets[i], offsets[i+1]) of y by weights[i], bit for bit what
// linear() gives. Row r of y comes from row tokens[r] of x; from row r where tokens are empty. offsets [groups + 1] and
// tokens are I32; weights are alike in shape and dtype. Of groups without rows nothing is read.
void grouped_linear(ThreadPool& pool, Arena& scratch, const Tensor& x, const Tensor& tokens, const Tensor& offsets,
                    std::span<const Weight> weights, const Tensor& y, LinearOut out);

}  // namespace saccade::cpu
