// Mixture of experts on vectors; meanings as in reference.h.
#pragma once

#include "kernels/cpu/rows_simd.h"

namespace saccade::cpu {

template <class S, class T>
void combine(const T* x, const int32_t* places, const float* weights, int64_t k, int64_t d, T* y) {
  for_lanes<S>(d, [&](int64_t i, auto n) {
    auto sum = S::set(0);
    for (int64_t j = 0; j < k; ++j) sum = sum + S::set(weights[j]) * load<S>(x + places[j] * d + i, n);
    store<S>(y + i, sum, n);
  });
}

}  // namespace saccade::cpu
