// How an instruction set's table is put together from the templates.
#pragma once

#include "kernels/cpu/attend.h"
#include "kernels/cpu/moe_simd.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/rows_simd.h"

namespace saccade::cpu {

template <class S, class T, class Scores = FloatScores<S, T>>
constexpr TypeKernels<T> type_kernels() {
  return {rms_norm<S, T>,      layer_norm<S, T>,
          gelu_row<S, T>,      gelu_tanh_row<S, T>,
          add_row<S, T>,       rope<S, T, true>,
          rope<S, T, false>,   finish<S, T>,
          combine<S, T>,       Attention<S, T, Scores>::run,
          multiply_down<S, T>, Attention<S, T, Scores>::merge};
}

template <class S>
constexpr Kernels simd_kernels(const char* name) {
  return {name,
          product_of<Bf16TimesBf16<S>>(),
          product_of<FloatTimesBf16<S>>(),
          product_of<FloatTimesFloat<S>>(),
          type_kernels<S, float>(),
          type_kernels<S, BFloat16>()};
}

}  // namespace saccade::cpu
