// Vectors of AVX-512 (F, BW, DQ, VL). Include only in files compiled for it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace saccade::cpu {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kTileX = 6, kTileW = 4;  // accumulators of a product tile: rows of x, rows of w
  static constexpr int kTileQ = 6, kTileV = 4;  // of an attention tile: queries, vectors of keys or values

  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const BFloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_part(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static F load_part(const BFloat16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(BFloat16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
  static void store_part(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  static void store_part(BFloat16* p, F x, int64_t n) { _mm256_mask_storeu_epi16(p, mask(n), narrow(x)); }

  // 32 bf16 values as 16 even and 16 odd ones.
  static void load_pairs(const BFloat16* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }  // NaN where b is
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F times_power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static F where_negative(F x, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  // First n lanes of x, -infinity in the others; n may be beyond the range.
  static F mask_beyond(F x, int64_t n) {
    return _mm512_mask_blend_ps(n <= 0 ? __mmask16{0} : mask(n < 16 ? n : 16), set(-__builtin_inff()), x);
  }
  static float sum(F x) { return _mm_cvtss_f32(sum4(x, x, x, x)); }
  static float top(F x) { return _mm512_reduce_max_ps(x); }
  // to[0..3] (+)= the sums of a, b, c, d.
  static void store_sums(float* to, bool add, F a, F b, F c, F d) {
    const __m128 sums = sum4(a, b, c, d);
    _mm_storeu_ps(to, add ? _mm_loadu_ps(to) + sums : sums);
  }
  static void transpose(F* r) {  // 16 x 16
    F t[16];
    for (int i = 0; i < 16; i += 4) {  // 4 x 4 inside the 128-bit quarters
      const F ab_low = _mm512_unpacklo_ps(r[i], r[i + 1]), ab_high = _mm512_unpackhi_ps(r[i], r[i + 1]);
      const F cd_low = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), cd_high = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
      t[i] = _mm512_shuffle_ps(ab_low, cd_low, 0x44);
      t[i + 1] = _mm512_shuffle_ps(ab_low, cd_low, 0xee);
      t[i + 2] = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
      t[i + 3] = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // then the quarters, 4 x 4
      const F ab_low = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x44), ab_high = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xee);
      const F cd_low = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x44);
      const F cd_high = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xee);
      r[i] = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
      r[i + 4] = _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
      r[i + 8] = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
    }
  }
  static F round_bf16(F x) { return widen(narrow(x)); }

 private:
  static __m128 sum4(F a, F b, F c, F d) {  // each by the same tree
    const F ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const F cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    const F abcd = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
    const __m256 half = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static F widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  static __m256i narrow(F x) {  // to nearest even; NaN stays NaN
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __m512i r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), up, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
  }
};

}  // namespace saccade::cpu
