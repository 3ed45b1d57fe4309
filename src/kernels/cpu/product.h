// Matrix products in dot-product form: weights are read as the checkpoint has them, row by row along k, and so are
// the activations. A tile of kTileX rows of x times kTileW rows of w keeps one vector accumulator per output, adds
// along k, and sums across lanes at the end; one output is computed in the same order in every tile.
//
// Bytes: each weight is loaded once per kTileX rows of x (from memory for the first, from L1 after). With 6 x 4
// accumulators a step loads 10 vectors for 24 multiply-adds.
#pragma once

#include "kernels/cpu/kernels.h"

namespace saccade::cpu {

// Weights of BF16 times float activations: even and odd values apart, so that widening takes no shuffle.
template <class S>
struct FloatTimesBf16 {
  using Simd = S;
  using X = float;
  using W = BFloat16;
  using PackedX = float;  // per step: even values, then odd ones
  using Vec = typename S::F;
  static constexpr int64_t kStep = 2 * S::kLanes;
  struct Load {
    Vec even, odd;
  };
  static Load load_w(const W* p) {
    Load r;
    S::load_pairs(p, r.even, r.odd);
    return r;
  }
  static Load load_x(const PackedX* p) { return {S::load(p), S::load(p + S::kLanes)}; }
  static Vec add(Vec sum, const Load& x, const Load& w) { return S::fma(x.odd, w.odd, S::fma(x.even, w.even, sum)); }
  static int64_t place(int64_t k) { return k % 2 * S::kLanes + k / 2; }
};

// The same for BF16 activations, widened while they are packed.
template <class S>
struct Bf16TimesBf16 : FloatTimesBf16<S> {
  using X = BFloat16;
};

template <class S>
struct FloatTimesFloat {
  using Simd = S;
  using X = float;
  using W = float;
  using PackedX = float;
  using Vec = typename S::F;
  using Load = Vec;
  static constexpr int64_t kStep = S::kLanes;
  static Load load_w(const W* p) { return S::load(p); }
  static Load load_x(const PackedX* p) { return S::load(p); }
  static Vec add(Vec sum, Load x, Load w) { return S::fma(x, w, sum); }
  static int64_t place(int64_t k) { return k; }
};

// Packed x: panels of kTileX rows (the last may have fewer); in a panel, step by step, row by row.
template <class P>
void pack_x(const void* x_data, int64_t ldx, const int32_t* places, int64_t t, int64_t k, void* packed_data) {
  constexpr int64_t kStep = P::kStep, kTileX = P::Simd::kTileX;
  const auto* x = static_cast<const typename P::X*>(x_data);
  auto* packed = static_cast<typename P::PackedX*>(packed_data);
  for (int64_t t0 = 0; t0 < t; t0 += kTileX) {
    const int64_t rows = t - t0 < kTileX ? t - t0 : kTileX;
    for (int64_t k0 = 0; k0 < k; k0 += kStep) {
      const int64_t count = k - k0 < kStep ? k - k0 : kStep;
      for (int64_t r = 0; r < rows; ++r, packed += kStep) {
        const auto* from = x + (places ? places[t0 + r] : t0 + r) * ldx + k0;
        if (count == kStep) {
          for (int64_t i = 0; i < kStep; ++i) packed[P::place(i)] = typename P::PackedX(from[i]);
        } else {
          for (int64_t i = 0; i < kStep; ++i) {
            packed[P::place(i)] = i < count ? typename P::PackedX(from[i]) : typename P::PackedX{};
          }
        }
      }
    }
  }
}

template <class P, int kX, int kW, bool kPrefetch>
[[gnu::always_inline]] inline void multiply_tile(const typename P::PackedX* x, const typename P::W* w,
                                                 const typename P::W* next, int64_t ldw, int64_t k, float* out,
                                                 int64_t ldo, bool add) {
  using S = typename P::Simd;
  typename P::Vec sum[kX][kW];
  for (auto& row : sum) {
    for (auto& s : row) s = S::set(0);
  }
  const auto step = [&](const typename P::W* at, int64_t stride) __attribute__((always_inline)) {
    typename P::Load xs[kX];
    for (int i = 0; i < kX; ++i) xs[i] = P::load_x(x + i * P::kStep);
    for (int j = 0; j < kW; ++j) {
      const auto ws = P::load_w(at + j * stride);
      for (int i = 0; i < kX; ++i) sum[i][j] = P::add(sum[i][j], xs[i], ws);
    }
    x += kX * P::kStep;
  };
  int64_t k0 = 0;
  for (; k0 + P::kStep <= k; k0 += P::kStep) {
    if constexpr (kPrefetch) {
      for (int j = 0; j < kW; ++j) __builtin_prefetch(next + j * ldw + k0, 0, 2);
    }
    step(w + k0, ldw);
  }
  if (k0 < k) {  // no read past the end of a row: what follows may be anything
    alignas(64) typename P::W tail[kW][P::kStep] = {};
    for (int j = 0; j < kW; ++j) {
      __builtin_memcpy(tail[j], w + j * ldw + k0, static_cast<size_t>(k - k0) * sizeof(typename P::W));
    }
    step(tail[0], P::kStep);
  }
  for (int i = 0; i < kX; ++i) {
    float* row = out + i * ldo;
    if constexpr (kW == 4) {
      S::store_sums(row, add, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    } else {
      static_assert(kW == 1);
      const float s = S::sum(sum[i][0]);
      row[0] = add ? row[0] + s : s;
    }
  }
}

template <class P, int kW, bool kPrefetch, int kX = P::Simd::kTileX>
[[gnu::always_inline]] inline void multiply_rows(int64_t rows, const typename P::PackedX* x, const typename P::W* w,
                                                 const typename P::W* next, const MultiplyArgs& a, float* out) {
  if (rows == kX) {
    multiply_tile<P, kX, kW, kPrefetch>(x, w, next, a.ldw, a.k, out, a.ldo, a.add);
  } else if constexpr (kX > 1) {
    multiply_rows<P, kW, kPrefetch, kX - 1>(rows, x, w, next, a, out);
  }
}

template <class P>
void multiply(const MultiplyArgs& a) {
  constexpr int64_t kTileX = P::Simd::kTileX, kTileW = P::Simd::kTileW;
  const auto* x = static_cast<const typename P::PackedX*>(a.x);
  const auto* w = static_cast<const typename P::W*>(a.w);
  const int64_t steps = (a.k + P::kStep - 1) / P::kStep;
  int64_t j = 0;
  for (; j + kTileW <= a.n; j += kTileW, w += kTileW * a.ldw) {
    const auto* next = j + 2 * kTileW <= a.n ? w + kTileW * a.ldw : static_cast<const typename P::W*>(a.next);
    for (int64_t i = 0; i < a.t; i += kTileX) {
      const int64_t rows = a.t - i < kTileX ? a.t - i : kTileX;
      const auto* panel = x + i * steps * P::kStep;
      float* out = a.out + i * a.ldo + j;
      if (i == 0 && a.t > 2 * kTileX) {  // with few rows the hardware's own streams do better
        multiply_rows<P, 4, true>(rows, panel, w, next, a, out);
      } else {
        multiply_rows<P, 4, false>(rows, panel, w, next, a, out);
      }
    }
  }
  for (; j < a.n; ++j, w += a.ldw) {
    for (int64_t i = 0; i < a.t; i += kTileX) {
      const int64_t rows = a.t - i < kTileX ? a.t - i : kTileX;
      multiply_rows<P, 1, false>(rows, x + i * steps * P::kStep, w, w, a, a.out + i * a.ldo + j);
    }
  }
}

// One row of x. Short rows of w are read one by one with the next ones prefetched, long ones four abreast: what the
// prefetchers of the hardware follow best in each case. The sums are those of multiply_tile, in its order.
template <class P>
void stream(const MultiplyArgs& a, int64_t block_k) {
  using S = typename P::Simd;
  constexpr int64_t kRows = 4, kShort = 8192, kAhead = 4096;  // bytes
  const auto* x = static_cast<const typename P::PackedX*>(a.x);
  const auto* w = static_cast<const typename P::W*>(a.w);
  const int64_t blocks = (a.k + block_k - 1) / block_k;
  const bool one_by_one = a.k * static_cast<int64_t>(sizeof(typename P::W)) <= kShort;
  typename P::Vec sum[kMaxStreamBlocks][kRows];

  const auto tail = [&](const typename P::W* row, int64_t k0) {  // no read past the end of a row
    alignas(64) typename P::W last[P::kStep] = {};
    __builtin_memcpy(last, row + k0, static_cast<size_t>(a.k - k0) * sizeof(typename P::W));
    return P::load_w(last);
  };
  int64_t j = 0;
  for (; j + kRows <= a.n; j += kRows, w += kRows * a.ldw) {
    if (one_by_one) {
      for (int64_t r = 0; r < kRows; ++r) {
        const auto* row = w + r * a.ldw;
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t end = a.k < (b + 1) * block_k ? a.k : (b + 1) * block_k;
          auto s = S::set(0);
          int64_t k0 = b * block_k;
          for (; k0 + P::kStep <= end; k0 += P::kStep) {
            __builtin_prefetch(reinterpret_cast<const char*>(row + k0) + kAhead);
            s = P::add(s, P::load_x(x + k0), P::load_w(row + k0));
          }
          if (k0 < end) s = P::add(s, P::load_x(x + k0), tail(row, k0));
          sum[b][r] = s;
        }
      }
    } else {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t end = a.k < (b + 1) * block_k ? a.k : (b + 1) * block_k;
        typename P::Vec s[kRows] = {S::set(0), S::set(0), S::set(0), S::set(0)};
        int64_t k0 = b * block_k;
        for (; k0 + P::kStep <= end; k0 += P::kStep) {
          const auto xs = P::load_x(x + k0);
          for (int64_t r = 0; r < kRows; ++r) s[r] = P::add(s[r], xs, P::load_w(w + r * a.ldw + k0));
        }
        for (int64_t r = 0; r < kRows; ++r) {
          if (k0 < end) s[r] = P::add(s[r], P::load_x(x + k0), tail(w + r * a.ldw, k0));
          sum[b][r] = s[r];
        }
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      S::store_sums(a.out + j, b > 0, sum[b][0], sum[b][1], sum[b][2], sum[b][3]);
    }
  }
  if (j == a.n) return;
  for (int64_t k0 = 0; k0 < a.k; k0 += block_k) {
    const int64_t k = a.k - k0 < block_k ? a.k - k0 : block_k;
    multiply<P>({x + k0, w + k0, w + k0, a.ldw, 1, a.n - j, k, a.out + j, a.ldo, k0 > 0});
  }
}

// TypeKernels::multiply_down
template <class S, class W>
void multiply_down(const float* x, int64_t t, const W* w, int64_t ldw, int64_t n, int64_t c, float* y) {
  using F = typename S::F;
  constexpr int64_t kDeep = 8, kLanes = S::kLanes;  // rows of w that are added at a time
  for (int64_t i = 0; i < t * c; ++i) y[i] = 0;
  const auto add = [&]<int64_t kRows>(int64_t row, std::integral_constant<int64_t, kRows>) {
    const W* from = w + row * ldw;
    const float* xs = x + row;
    for (int64_t j = 0; j < c; j += kLanes) {
      const int64_t left = c - j;
      F ws[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        ws[i] = left >= kLanes ? S::load(from + i * ldw + j) : S::load_part(from + i * ldw + j, left);
      }
      for (int64_t r = 0; r < t; ++r) {
        float* to = y + r * c + j;
        F sum = left >= kLanes ? S::load(to) : S::load_part(to, left);
        for (int64_t i = 0; i < kRows; ++i) sum = S::fma(S::set(xs[r * n + i]), ws[i], sum);
        left >= kLanes ? S::store(to, sum) : S::store_part(to, sum, left);
      }
    }
  };
  int64_t row = 0;
  for (; row + kDeep <= n; row += kDeep) add(row, std::integral_constant<int64_t, kDeep>{});
  for (; row < n; ++row) add(row, std::integral_constant<int64_t, 1>{});
}

inline constexpr int64_t kMostRows = 132;  // a multiple of the tiles' 6 and 3

template <class P>
constexpr Product product_of() {
  return {1, P::kStep, kMostRows, sizeof(typename P::PackedX), pack_x<P>, multiply<P>, stream<P>};
}

}  // namespace saccade::cpu
