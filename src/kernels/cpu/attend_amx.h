// Tiles of attention by AMX: 16 queries at a time. Scores are one tile product per 32 channels and 16 keys; both
// operands lie as the other instruction sets want them. Probabilities are split into two BF16 parts, which keep 16 of
// their bits, and multiply pairs of values.
//
// Only for threads of a process that has been granted the tile registers (isa.cpp).
#pragma once

#include "kernels/cpu/attend.h"
#include "kernels/cpu/product_amx.h"

namespace saccade::cpu {

struct AmxAttentionTiles {
  static constexpr int64_t kQueries = 16;
  static constexpr bool kPairsOfValues = true;
  static constexpr int64_t kPairs = kKeyBlock / 2, kLanes = 16;
  struct Use {
    Use() { _tile_loadconfig(&kTileConfig); }
    ~Use() { _tile_release(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
  };

  // Values of n keys -> [32 pairs of keys][padded channels][2], zero where there are none.
  static void pair_values(const BFloat16* v, int64_t stride, int64_t n, int64_t dim, float* to, int64_t padded) {
    const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
                  last = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    for (int64_t j = 0; j < kKeyBlock; j += 2, to += padded) {
      for (int64_t d = 0; d < padded; d += 2 * kLanes) {
        const auto mask = dim - d < 2 * kLanes ? static_cast<__mmask32>((1u << (dim - d)) - 1) : ~__mmask32{0};
        const auto row = [&](int64_t key) {
          return _mm512_maskz_loadu_epi16(key < n ? mask : __mmask32{0}, v + (key < n ? key * stride : 0) + d);
        };
        const __m512i even = row(j), odd = row(j + 1);
        const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi64(low, first, high));
        if (d + kLanes < padded) _mm512_storeu_si512(to + d + kLanes, _mm512_permutex2var_epi64(low, last, high));
      }
    }
  }

  // scores[r][j] = q[r] . key j. Rows of q beyond `rows` may be anything: they give scores that nobody reads.
  static void score_rows(int64_t, const float* q, int64_t stride, int64_t units, const float* keys, float* scores) {
    tiles_see_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    constexpr int64_t kKeysBytes = kKeyBlock * 4;
    for (int64_t u = 0; u < units; u += kLanes) {
      const float* from = keys + u * kKeyBlock;
      _tile_loadd(4, q + u, stride * 4);
      _tile_loadd(5, from, kKeysBytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, from + kLanes, kKeysBytes);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, from + 2 * kLanes, kKeysBytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, from + 3 * kLanes, kKeysBytes);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, scores, kKeysBytes);
    _tile_stored(1, scores + kLanes, kKeysBytes);
    _tile_stored(2, scores + 2 * kLanes, kKeysBytes);
    _tile_stored(3, scores + 3 * kLanes, kKeysBytes);
  }

  // acc[r] = acc[r] * scale[r] + sum over j of p[r][j] * value j.
  static void weigh_pairs(int64_t rows, int64_t padded, const float* p, const float* scale, const float* values,
                          float* acc) {
    alignas(64) float parts[2][kQueries * kPairs];  // of each row: 64 probabilities, rounded, and what that lost
    for (int64_t i = 0; i < kQueries * kPairs; i += kLanes) {
      if (i >= rows * kPairs) {
        _mm512_store_ps(parts[0] + i, _mm512_setzero_ps());
        _mm512_store_ps(parts[1] + i, _mm512_setzero_ps());
        continue;
      }
      const __m512 low = _mm512_load_ps(p + 2 * i), high = _mm512_load_ps(p + 2 * i + kLanes);
      const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
      const auto* halves = reinterpret_cast<const __m256i*>(&rounded);
      const auto lost = [](__m512 x, __m256i half) {
        return x - _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      };
      const __m512bh rest = _mm512_cvtne2ps_pbh(lost(high, halves[1]), lost(low, halves[0]));
      _mm512_store_si512(parts[0] + i, (__m512i)rounded);
      _mm512_store_si512(parts[1] + i, (__m512i)rest);
    }
    tiles_see_memory();
    constexpr int64_t kRowBytes = kPairs * 4;
    const int64_t value_bytes = padded * 4;
    _tile_loadd(2, parts[0], kRowBytes);
    _tile_loadd(3, parts[0] + kLanes, kRowBytes);
    _tile_loadd(4, parts[1], kRowBytes);
    _tile_loadd(5, parts[1] + kLanes, kRowBytes);
    for (int64_t d = 0; d < padded; d += kLanes) {
      alignas(64) float sums[kQueries * kLanes];
      _tile_zero(0);
      _tile_loadd(6, values + d, value_bytes);
      _tile_dpbf16ps(0, 2, 6);
      _tile_loadd(7, values + kLanes * padded + d, value_bytes);
      _tile_dpbf16ps(0, 3, 7);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(0, 5, 7);
      _tile_stored(0, sums, 64);
      for (int64_t r = 0; r < rows; ++r) {
        float* to = acc + r * padded + d;
        _mm512_storeu_ps(
            to, _mm512_fmadd_ps(_mm512_loadu_ps(to), _mm512_set1_ps(scale[r]), _mm512_load_ps(sums + r * kLanes)));
      }
    }
  }
};

}  // namespace saccade::cpu
