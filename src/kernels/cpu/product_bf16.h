// BF16 times BF16 by vdpbf16ps: 32 products a step, sums in float. Include only where AVX512-BF16 is compiled for.
#pragma once

#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tables.h"

namespace saccade::cpu {

struct DotBf16 {
  using Simd = Avx512;
  using X = BFloat16;
  using W = BFloat16;
  using PackedX = BFloat16;
  using Vec = __m512;
  using Load = __m512bh;
  static constexpr int64_t kStep = 32;
  static Load load_w(const W* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Load load_x(const PackedX* p) { return load_w(p); }
  static Vec add(Vec sum, Load x, Load w) { return _mm512_dpbf16_ps(sum, w, x); }
  static int64_t place(int64_t k) { return k; }
};

// Scores of attention by the same instruction: pairs of channels.
struct PairScores {
  static constexpr int64_t kUnit = 2;
  static __m512 load(const BFloat16* p, int64_t units) {
    return FloatScores<Avx512, float>::load(reinterpret_cast<const float*>(p), units);
  }
  static __m512 add(__m512 sum, const float* q, __m512 keys) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(*q), (__m512bh)keys);
  }
};

constexpr Kernels bf16_kernels(const char* name) {
  Kernels kernels = simd_kernels<Avx512>(name);
  kernels.bf16_bf16 = product_of<DotBf16>();
  kernels.bf16 = type_kernels<Avx512, BFloat16, PairScores>();
  return kernels;
}

}  // namespace saccade::cpu
