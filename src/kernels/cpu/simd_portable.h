// Vectors of four floats in compiler-generic form: SSE2, NEON or whatever the target has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"

namespace saccade::cpu {

struct Portable {
  using F = float __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kTileX = 2, kTileW = 4;  // accumulators of a product tile: rows of x, rows of w
  static constexpr int kTileQ = 2, kTileV = 4;  // of an attention tile: queries, vectors of keys or values

  static F set(float x) { return F{x, x, x, x}; }
  template <class T>
  static F load(const T* p) {
    return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
  }
  template <class T>
  static F load_part(const T* p, int64_t n) {
    F r = set(0);
    for (int64_t i = 0; i < 4; ++i) {
      if (i < n) r[i] = float(p[i]);
    }
    return r;
  }
  template <class T>
  static void store(T* p, F x) {
    store_part(p, x, 4);
  }
  template <class T>
  static void store_part(T* p, F x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = T(x[i]);
  }

  // 8 bf16 values as 4 even and 4 odd ones.
  static void load_pairs(const BFloat16* p, F& even, F& odd) {
    even = F{float(p[0]), float(p[2]), float(p[4]), float(p[6])};
    odd = F{float(p[1]), float(p[3]), float(p[5]), float(p[7])};
  }

  static F fma(F a, F b, F c) { return a * b + c; }
  static F min(F a, F b) { return a < b ? a : b; }  // NaN where b is
  static F max(F a, F b) { return a > b ? a : b; }
  static F round(F x) {
    return map(x, [](float v) { return std::nearbyint(v); });
  }
  static F times_power_of_two(F x, F n) {
    for (int i = 0; i < 4; ++i) x[i] = std::ldexp(x[i], n[i] == n[i] ? static_cast<int>(n[i]) : 0);
    return x;
  }
  static F abs(F x) { return x < 0 ? -x : x; }
  static F where_negative(F x, F a, F b) { return x < 0 ? a : b; }
  // First n lanes of x, -infinity in the others; n may be beyond the range.
  static F mask_beyond(F x, int64_t n) {
    for (int64_t i = 0; i < 4; ++i) x[i] = i < n ? x[i] : -INFINITY;
    return x;
  }
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float top(F x) { return std::fmax(std::fmax(x[0], x[1]), std::fmax(x[2], x[3])); }
  // to[0..3] (+)= the sums of a, b, c, d.
  static void store_sums(float* to, bool add, F a, F b, F c, F d) {
    const F sums = {sum(a), sum(b), sum(c), sum(d)};
    store(to, add ? load(to) + sums : sums);
  }
  static void transpose(F* r) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float swap = r[i][j];
        r[i][j] = r[j][i];
        r[j][i] = swap;
      }
    }
  }
  static F round_bf16(F x) {
    return map(x, [](float v) { return float(BFloat16(v)); });
  }

 private:
  template <class Fn>
  static F map(F x, Fn fn) {
    return F{fn(x[0]), fn(x[1]), fn(x[2]), fn(x[3])};
  }
};

}  // namespace saccade::cpu
