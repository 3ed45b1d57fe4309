// Vectors of AVX2 and FMA. Include only in files compiled for them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"

namespace saccade::cpu {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kTileX = 3, kTileW = 4;  // accumulators of a product tile: rows of x, rows of w
  static constexpr int kTileQ = 6, kTileV = 2;  // of an attention tile: queries, vectors of keys or values

  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const BFloat16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_part(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static F load_part(const BFloat16* p, int64_t n) {
    BFloat16 full[8] = {};
    std::memcpy(full, p, static_cast<size_t>(n) * sizeof(BFloat16));
    return load(full);
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store(BFloat16* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
  static void store_part(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, mask(n), x); }
  static void store_part(BFloat16* p, F x, int64_t n) {
    BFloat16 full[8];
    store(full, x);
    std::memcpy(p, full, static_cast<size_t>(n) * sizeof(BFloat16));
  }

  // 16 bf16 values as 8 even and 8 odd ones.
  static void load_pairs(const BFloat16* p, F& even, F& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }  // NaN where b is
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // |n| < 151; results beyond the float range become 0 or infinity.
  static F times_power_of_two(F x, F n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return x * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
  }
  static F abs(F x) { return _mm256_andnot_ps(set(-0.0F), x); }
  static F where_negative(F x, F a, F b) { return _mm256_blendv_ps(b, a, x); }
  // First n lanes of x, -infinity in the others; n may be beyond the range.
  static F mask_beyond(F x, int64_t n) {
    return _mm256_blendv_ps(set(-__builtin_inff()), x, _mm256_castsi256_ps(mask(n < 0 ? 0 : n < 8 ? n : 8)));
  }
  static float sum(F x) { return _mm_cvtss_f32(sum4(x, x, x, x)); }
  static float top(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  // to[0..3] (+)= the sums of a, b, c, d.
  static void store_sums(float* to, bool add, F a, F b, F c, F d) {
    const __m128 sums = sum4(a, b, c, d);
    _mm_storeu_ps(to, add ? _mm_loadu_ps(to) + sums : sums);
  }
  static void transpose(F* r) {  // 8 x 8
    F t[8];
    for (int i = 0; i < 8; i += 4) {  // 4 x 4 inside the 128-bit halves
      const F ab_low = _mm256_unpacklo_ps(r[i], r[i + 1]), ab_high = _mm256_unpackhi_ps(r[i], r[i + 1]);
      const F cd_low = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), cd_high = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
      t[i] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
      t[i + 1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
      t[i + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
      t[i + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
  }
  static F round_bf16(F x) { return widen(narrow(x)); }

 private:
  static __m128 sum4(F a, F b, F c, F d) {  // each by the same tree
    const F ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    const F cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    const F abcd = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
    return _mm256_castps256_ps128(abcd) + _mm256_extractf128_ps(abcd, 1);
  }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static F widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static __m128i narrow(F x) {  // to nearest even; NaN stays NaN
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  }
};

}  // namespace saccade::cpu
