// BF16 times BF16 by AMX tiles: C[16 rows of w][16 rows of x] += A[16 rows of w][32 of k] * B[32 of k][16 rows of x].
// A is read where the weights lie, its rows ldw apart; the few rows of x are packed into B's layout of k-pairs. Two by
// three tiles of C take two loads of A and five of B for six products, so that 48 rows of x need each weight once; two
// by two take the panels that are left over. With up to 16 rows of x, one B serves four A.
// The sum of one output runs over k in the order of the steps, whatever stands beside it.
//
// Only for threads of a process that has been granted the tile registers (isa.cpp).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/simd_avx512.h"

namespace saccade::cpu {

// Eight tiles, for sums and for operands; all have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfig kTileConfig;  // in memory: GCC's _tile_loadconfig says that it reads 8 bytes only

inline void tiles_see_memory() { __asm__ volatile("" ::: "memory"); }  // GCC's _tile_loadd does not say that it reads

struct TileBf16 {
  static constexpr int64_t kStep = 32, kRows = 16;
  static constexpr int64_t kMostRows = 192;         // threes of panels
  static constexpr int64_t kBlock = kStep * kRows;  // elements of a tile of A or B

  // Packed x: panels of 16 rows; in a panel, step by step, [16 pairs of k][16 rows][2]: pairs are transposed like
  // floats. Places of rows beyond t, where few are packed, stay as they are: they reach sums that nobody reads.
  static void pack(const void* x_data, int64_t ldx, const int32_t* places, int64_t t, int64_t k, void* packed_data) {
    constexpr int64_t kFew = 4;
    const auto* x = static_cast<const BFloat16*>(x_data);
    auto* packed = static_cast<float*>(packed_data);  // each a pair
    for (int64_t t0 = 0; t0 < t; t0 += kRows) {
      const int64_t rows = t - t0 < kRows ? t - t0 : kRows;
      const BFloat16* from[kRows];
      for (int64_t r = 0; r < rows; ++r) from[r] = x + (places ? places[t0 + r] : t0 + r) * ldx;
      for (int64_t k0 = 0; k0 < k; k0 += kStep, packed += kBlock / 2) {
        const auto mask = k - k0 < kStep ? static_cast<__mmask32>((1u << (k - k0)) - 1) : ~__mmask32{0};
        const auto pairs = [&](int64_t r) { return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from[r] + k0)); };
        if (rows <= kFew) {
          for (int64_t r = 0; r < rows; ++r) {
            alignas(64) float row[kRows];
            _mm512_store_ps(row, pairs(r));
            for (int64_t i = 0; i < kRows; ++i) packed[i * kRows + r] = row[i];
          }
          continue;
        }
        __m512 tile[kRows];
        for (int64_t r = 0; r < kRows; ++r) tile[r] = r < rows ? pairs(r) : _mm512_setzero_ps();
        Avx512::transpose(tile);
        for (int64_t i = 0; i < kRows; ++i) _mm512_storeu_ps(packed + i * kRows, tile[i]);
      }
    }
  }

  static void multiply(const MultiplyArgs& a) {
    _tile_loadconfig(&kTileConfig);
    const auto* w = static_cast<const BFloat16*>(a.w);
    int64_t j = 0;
    if (a.t <= kRows) {
      for (; j + 4 * kRows <= a.n; j += 4 * kRows) multiply_tiles<4, 1>(a, w + j * a.ldw, 0, j);
      for (; j + 2 * kRows <= a.n; j += 2 * kRows) multiply_tiles<2, 1>(a, w + j * a.ldw, 0, j);
      for (; j + kRows <= a.n; j += kRows) multiply_tiles<1, 1>(a, w + j * a.ldw, 0, j);
    } else {
      const int64_t panels = (a.t + kRows - 1) / kRows;
      for (; j + 2 * kRows <= a.n; j += 2 * kRows) {
        for (int64_t p = 0; p < panels;) {  // by three, or by two where one would be left over
          if (panels - p == 3 || panels - p > 4) {
            multiply_tiles<2, 3>(a, w + j * a.ldw, p * kRows, j);
            p += 3;
          } else {
            multiply_tiles<2, 2>(a, w + j * a.ldw, p * kRows, j);
            p += 2;
          }
        }
      }
      for (; j + kRows <= a.n; j += kRows) {
        for (int64_t i = 0; i < a.t; i += kRows) multiply_tiles<1, 1>(a, w + j * a.ldw, i, j);
      }
    }
    if (j < a.n) {
      for (int64_t i = 0; i < a.t; i += kRows) multiply_last_rows(a, w + j * a.ldw, i, j);
    }
    _tile_release();
  }

 private:
  static const BFloat16* panel(const MultiplyArgs& a, int64_t i) {
    return static_cast<const BFloat16*>(a.x) + i * ((a.k + kStep - 1) / kStep * kStep);
  }

  // kW tiles of 16 rows of w from `w` on times kX panels of x from row i on: (4, 1), (2, 1), (1, 1), (2, 2) or (2, 3).
  template <int kW, int kX>
  static void multiply_tiles(const MultiplyArgs& a, const BFloat16* w, int64_t i, int64_t j) {
    const BFloat16* x0 = panel(a, i);
    const int64_t panel_size = panel(a, kRows) - panel(a, 0);
    const auto step = [&](const BFloat16* at, int64_t row_bytes) __attribute__((always_inline)) {
      const auto rows = [&](int tile) { return at + tile * kRows * row_bytes / 2; };
      const BFloat16 *x1 = x0 + panel_size, *x2 = x1 + panel_size;
      if constexpr (kW == 4) {
        _tile_loadd(4, x0, 64);
        _tile_loadd(5, rows(0), row_bytes);
        _tile_dpbf16ps(0, 5, 4);
        _tile_loadd(6, rows(1), row_bytes);
        _tile_dpbf16ps(1, 6, 4);
        _tile_loadd(5, rows(2), row_bytes);
        _tile_dpbf16ps(2, 5, 4);
        _tile_loadd(6, rows(3), row_bytes);
        _tile_dpbf16ps(3, 6, 4);
      } else if constexpr (kX == 3) {
        _tile_loadd(6, rows(0), row_bytes);
        _tile_loadd(7, x0, 64);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, x1, 64);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, x2, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(6, rows(1), row_bytes);
        _tile_dpbf16ps(5, 6, 7);
        _tile_loadd(7, x1, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, x0, 64);
        _tile_dpbf16ps(3, 6, 7);
      } else {
        _tile_loadd(4, x0, 64);
        _tile_loadd(6, rows(0), row_bytes);
        _tile_dpbf16ps(0, 6, 4);
        if constexpr (kX == 2) {
          _tile_loadd(5, x1, 64);
          _tile_dpbf16ps(1, 6, 5);
        }
        if constexpr (kW == 2) {
          _tile_loadd(7, rows(1), row_bytes);
          if constexpr (kX == 2) {
            _tile_dpbf16ps(2, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
          } else {
            _tile_dpbf16ps(1, 7, 4);
          }
        }
      }
      x0 += kBlock;
    };

    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    const int64_t row_bytes = a.ldw * static_cast<int64_t>(sizeof(BFloat16));
    // Sixteen and more row streams are too many for the hardware to follow. Where one pass is all, what comes in these
    // rows is fetched; of several passes each fetches its share of the next panel's rows.
    const BFloat16* next = j + 2 * kW * kRows <= a.n ? w + kW * kRows * a.ldw : static_cast<const BFloat16*>(a.next);
    const int64_t padded_t = (a.t + kRows - 1) / kRows * kRows;
    const int64_t first = kW * kRows * i / padded_t, last = kW * kRows * (i + kX * kRows) / padded_t;
    constexpr int64_t kAhead = 16 * kStep;
    int64_t k0 = 0;
    for (; k0 + kStep <= a.k; k0 += kStep) {
      if constexpr (kX > 1) {
        for (int64_t r = first; r < last; ++r) __builtin_prefetch(next + r * a.ldw + k0, 0, 2);
      } else if (i == 0) {
        const BFloat16* ahead = k0 + kAhead < a.k ? w + k0 + kAhead : next + (k0 + kAhead - a.k);
        for (int64_t r = 0; r < kW * kRows; ++r) __builtin_prefetch(ahead + r * a.ldw, 0, 2);
      }
      step(w + k0, row_bytes);
    }
    if (k0 < a.k) {  // no read past the end of a row: what follows may be anything
      alignas(64) BFloat16 tail[kW * kBlock];
      copy_rows(w + k0, a.ldw, kW * kRows, a.k - k0, tail);
      step(tail, 64);
    }

    constexpr int kTiles = kW * kX;
    alignas(64) float sums[kTiles][kRows * kRows];
    _tile_stored(0, sums[0], 64);
    if constexpr (kTiles > 1) _tile_stored(1, sums[1], 64);
    if constexpr (kTiles > 2) _tile_stored(2, sums[2], 64);
    if constexpr (kTiles > 2) _tile_stored(3, sums[3], 64);
    if constexpr (kTiles > 4) _tile_stored(4, sums[4], 64);
    if constexpr (kTiles > 4) _tile_stored(5, sums[5], 64);
    for (int tile = 0; tile < kTiles; ++tile) {
      put(a, sums[tile], i + tile % kX * kRows, j + tile / kX * kRows, kRows);
    }
  }

  // The rows of w that do not fill a tile.
  static void multiply_last_rows(const MultiplyArgs& a, const BFloat16* w, int64_t i, int64_t j) {
    alignas(64) BFloat16 rows[kBlock];
    const BFloat16* x = panel(a, i);
    _tile_zero(0);
    for (int64_t k0 = 0; k0 < a.k; k0 += kStep, x += kBlock) {
      copy_rows(w + k0, a.ldw, a.n - j, a.k - k0 < kStep ? a.k - k0 : kStep, rows);
      _tile_loadd(4, x, 64);
      _tile_loadd(6, rows, 64);
      _tile_dpbf16ps(0, 6, 4);
    }
    alignas(64) float sums[kRows * kRows];
    _tile_stored(0, sums, 64);
    put(a, sums, i, j, a.n - j);
  }

  // `rows` rows of `count` elements, zero filled to tiles.
  static void copy_rows(const BFloat16* from, int64_t ld, int64_t rows, int64_t count, BFloat16* to) {
    __builtin_memset(to, 0, static_cast<size_t>((rows + kRows - 1) / kRows * kBlock) * sizeof(BFloat16));
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_memcpy(to + r * kStep, from + r * ld, static_cast<size_t>(count) * sizeof(BFloat16));
    }
    tiles_see_memory();
  }

  // out[i ..][j ..] (+)= the transpose of sums [16 rows of w][16 rows of x], `columns` of the former.
  static void put(const MultiplyArgs& a, const float* sums, int64_t i, int64_t j, int64_t columns) {
    __m512 rows[kRows];
    for (int64_t r = 0; r < kRows; ++r) rows[r] = _mm512_load_ps(sums + r * kRows);
    Avx512::transpose(rows);
    const auto mask = static_cast<__mmask16>((1u << columns) - 1);
    const int64_t count = a.t - i < kRows ? a.t - i : kRows;
    for (int64_t r = 0; r < count; ++r) {
      float* to = a.out + (i + r) * a.ldo + j;
      const __m512 sum = a.add ? _mm512_maskz_loadu_ps(mask, to) + rows[r] : rows[r];
      _mm512_mask_storeu_ps(to, mask, sum);
    }
  }
};

}  // namespace saccade::cpu
