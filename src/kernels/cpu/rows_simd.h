// Row-wise loops on vectors; meanings as in reference.h.
#pragma once

#include "kernels/cpu/functions.h"
#include "kernels/cpu/kernels.h"

namespace saccade::cpu {

// Rounds to the precision of T.
template <class S, class T>
[[gnu::always_inline]] inline typename S::F rounded(typename S::F x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return S::round_bf16(x);
  } else {
    return x;
  }
}

// Calls each(i, n): n is S::kLanes, as a constant, but for the last call where it is what is left.
template <class S, class Each>
[[gnu::always_inline]] inline void for_lanes(int64_t count, Each each) {
  int64_t i = 0;
  for (; i + S::kLanes <= count; i += S::kLanes) each(i, std::integral_constant<int64_t, S::kLanes>{});
  if (i < count) each(i, count - i);
}
template <class S, class T, class N>
[[gnu::always_inline]] inline typename S::F load(const T* p, N n) {
  if constexpr (std::is_same_v<N, int64_t>) {
    return S::load_part(p, n);
  } else {
    return S::load(p);
  }
}
template <class S, class T, class N>
[[gnu::always_inline]] inline void store(T* p, typename S::F x, N n) {
  if constexpr (std::is_same_v<N, int64_t>) {
    S::store_part(p, x, n);
  } else {
    S::store(p, x);
  }
}

template <class S, class T>
void rms_norm(const T* x, const T* w, T* y, int64_t d, float eps) {
  typename S::F squares = S::set(0);
  for_lanes<S>(d, [&](int64_t i, auto n) {
    const auto v = load<S>(x + i, n);
    squares = S::fma(v, v, squares);
  });
  const auto scale = S::set(1 / __builtin_sqrtf(S::sum(squares) / static_cast<float>(d) + eps));
  for_lanes<S>(
      d, [&](int64_t i, auto n) { store<S>(y + i, rounded<S, T>(load<S>(x + i, n) * scale) * load<S>(w + i, n), n); });
}

template <class S, class T>
void layer_norm(const T* x, const T* w, const T* b, T* y, int64_t d, float eps) {
  using F = typename S::F;
  F sum = S::set(0), squares = S::set(0);
  for_lanes<S>(d, [&](int64_t i, auto n) { sum = sum + load<S>(x + i, n); });
  const F mean = S::set(S::sum(sum) / static_cast<float>(d));
  for_lanes<S>(d, [&](int64_t i, auto n) {
    F v = load<S>(x + i, n) - mean;
    if constexpr (std::is_same_v<decltype(n), int64_t>) {  // lanes beyond the row must not count
      float part[S::kLanes] = {};
      S::store_part(part, v, n);
      v = S::load(part);
    }
    squares = S::fma(v, v, squares);
  });
  const F scale = S::set(1 / __builtin_sqrtf(S::sum(squares) / static_cast<float>(d) + eps));
  for_lanes<S>(d, [&](int64_t i, auto n) {
    store<S>(y + i, S::fma((load<S>(x + i, n) - mean) * scale, load<S>(w + i, n), load<S>(b + i, n)), n);
  });
}

template <class S, class T>
void gelu_row(const T* x, T* y, int64_t count) {
  for_lanes<S>(count, [&](int64_t i, auto n) { store<S>(y + i, gelu<S>(load<S>(x + i, n)), n); });
}

template <class S, class T>
void gelu_tanh_row(const T* x, T* y, int64_t count) {
  for_lanes<S>(count, [&](int64_t i, auto n) { store<S>(y + i, gelu_tanh<S>(load<S>(x + i, n)), n); });
}

template <class S, class T>
void add_row(T* x, const T* y, int64_t count) {
  for_lanes<S>(count, [&](int64_t i, auto n) { store<S>(x + i, load<S>(x + i, n) + load<S>(y + i, n), n); });
}

template <class S, class T, bool kRoundEach>
void rope(const T* x, const float* cos_sin, T* y, int64_t dim) {
  using F = typename S::F;
  const int64_t half = dim / 2;
  const auto product = [](F a, F b) { return kRoundEach ? rounded<S, T>(a * b) : a * b; };
  for_lanes<S>(half, [&](int64_t i, auto n) {
    const F c = load<S>(cos_sin + i, n), s = load<S>(cos_sin + half + i, n);
    const F a = load<S>(x + i, n), b = load<S>(x + half + i, n);
    store<S>(y + i, product(a, c) - product(b, s), n);
    store<S>(y + half + i, product(b, c) + product(a, s), n);
  });
}

template <class S, class T>
void finish(LinearOut out, const float* sum, const float* up, const float* bias, const float* up_bias, void* y_data,
            int64_t count) {
  auto* y = static_cast<T*>(y_data);
  for_lanes<S>(count, [&](int64_t i, auto n) {
    const auto value = [&](const float* from, const float* plus) {
      const auto v = load<S>(from + i, n);
      return rounded<S, T>(plus ? v + load<S>(plus + i, n) : v);
    };
    const auto v = value(sum, bias);
    switch (out) {
      case LinearOut::kStore:
        store<S>(y + i, v, n);
        break;
      case LinearOut::kAdd:
        store<S>(y + i, load<S>(y + i, n) + v, n);
        break;
      case LinearOut::kFloat:
        store<S>(static_cast<float*>(y_data) + i, v, n);
        break;
      case LinearOut::kGateUpSilu:
        store<S>(y + i, rounded<S, T>(silu<S>(v)) * value(up, up_bias), n);
        break;
    }
  });
}

}  // namespace saccade::cpu
