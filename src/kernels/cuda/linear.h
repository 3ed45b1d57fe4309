// Matrix products of prefill and of the vision tower, with weights in strips (kernels/cuda/layout.h).
#pragma once

#include "kernels/cuda/stream.h"
#include "tensor/weight.h"

namespace saccade::cuda {

enum class LinearOut {
  kStore,       // y [T,N] = round(sum)
  kAdd,         // y [T,N] = round(y + round(sum))
  kFloat,       // y [T,N] F32 = round(sum), rounded to bf16
  kGateUpSilu,  // y [T,N/2] = round(round(silu(round(gate))) * round(up)); rows of w in order kGateUp
};

// y = x W^T + b. x [T,K] BF16 contiguous, K even; w in strips; columns of y in the row order of w. Where w has more
// columns than x (padding), they count as zero. Row t of y depends on row t of x alone, bit for bit, not on T.
void linear(Stream stream, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out);

}  // namespace saccade::cuda
