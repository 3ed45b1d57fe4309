// The plain meaning of every op, templated on the activation type: BFloat16 and float are what the portable kernels
// run, double is the oracle of the tests (no rounding anywhere). One row or one head at a time; threads and tensors
// are the callers' business.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "tensor/dtype.h"

namespace saccade::cpu::reference {

// Sums and functions of T values are computed in float; in double for double.
template <class T>
using Arith = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
Arith<T> get(T value) {
  return static_cast<Arith<T>>(value);
}
template <class T>
T put(Arith<T> value) {
  return T(value);
}
template <class T>
Arith<T> rounded(Arith<T> value) {
  return get(put<T>(value));
}

template <class T, class W>
Arith<T> dot(const T* x, const W* w, int64_t k) {
  Arith<T> sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += get(x[i]) * static_cast<Arith<T>>(w[i]);
  return sum;
}

template <class A>
A silu(A x) {
  return x / (1 + std::exp(-x));
}
template <class A>
A gelu(A x) {
  return x * std::erfc(-x * static_cast<A>(0.70710678118654752440)) / 2;
}

template <class A>
A gelu_tanh(A x) {  // (1 + tanh u) / 2 = 1 / (1 + e^-2u), which loses nothing where tanh u is near -1
  const A twice_u = static_cast<A>(1.59576912160573071176) * (x + static_cast<A>(0.044715) * x * x * x);
  return x / (1 + std::exp(-twice_u));
}

template <class T>
void rms_norm(const T* x, const T* w, T* y, int64_t d, float eps) {
  Arith<T> sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += get(x[i]) * get(x[i]);
  const Arith<T> scale = 1 / std::sqrt(sum / static_cast<Arith<T>>(d) + static_cast<Arith<T>>(eps));
  for (int64_t i = 0; i < d; ++i) y[i] = put<T>(rounded<T>(get(x[i]) * scale) * get(w[i]));
}

template <class T>
void layer_norm(const T* x, const T* w, const T* b, T* y, int64_t d, float eps) {
  Arith<T> sum = 0, squares = 0;
  for (int64_t i = 0; i < d; ++i) sum += get(x[i]);
  const Arith<T> mean = sum / static_cast<Arith<T>>(d);
  for (int64_t i = 0; i < d; ++i) squares += (get(x[i]) - mean) * (get(x[i]) - mean);
  const Arith<T> scale = 1 / std::sqrt(squares / static_cast<Arith<T>>(d) + static_cast<Arith<T>>(eps));
  for (int64_t i = 0; i < d; ++i) y[i] = put<T>((get(x[i]) - mean) * scale * get(w[i]) + get(b[i]));
}

// Turns one head of `dim` values by cos_sin (dim/2 cosines, dim/2 sines); pairs are (i, i + dim/2).
// kRoundEach: each product is rounded as well as the sum.
template <bool kRoundEach, class T>
void rope(const T* x, const float* cos_sin, T* y, int64_t dim) {
  using A = Arith<T>;
  const int64_t half = dim / 2;
  const auto product = [](A a, float b) {
    const A p = a * static_cast<A>(b);
    return kRoundEach ? rounded<T>(p) : p;
  };
  for (int64_t i = 0; i < half; ++i) {
    const float c = cos_sin[i], s = cos_sin[half + i];
    const A a = get(x[i]), b = get(x[half + i]);
    y[i] = put<T>(product(a, c) - product(b, s));
    y[half + i] = put<T>(product(b, c) + product(a, s));
  }
}

// Softmax attention of one query over n keys. key(j) points to dim values, value(j) to value_dim; scores holds n
// values, in the end the weights not divided by their sum.
template <class T, class Key, class Value>
void attend(const T* q, Key key, Value value, int64_t n, int64_t dim, int64_t value_dim, float scale, Arith<T>* scores,
            T* y) {
  using A = Arith<T>;
  A top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    scores[j] = dot(q, key(j), dim) * static_cast<A>(scale);
    top = std::max(top, scores[j]);
  }
  for (int64_t j = 0; j < n; ++j) {
    scores[j] = std::exp(scores[j] - top);
    sum += scores[j];
  }
  for (int64_t d = 0; d < value_dim; ++d) {
    A weighted = 0;
    for (int64_t j = 0; j < n; ++j) weighted += scores[j] * get(value(j)[d]);
    y[d] = put<T>(weighted / sum);
  }
}

// Mixture of experts. In place.
template <class A>
void softmax(A* x, int64_t n) {
  A top = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i]);
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}
template <class A>
void sigmoid(A* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 1 / (1 + std::exp(-x[i]));
}

// The k best of e experts by score + bias (or null), best first, the lower one where equal, NaN last; and their
// weights, made from the scores.
template <class A>
void route(const A* scores, const A* bias, int64_t e, int64_t k, bool normalise, float scale, int32_t* experts,
           A* weights) {
  const auto worth = [&](int64_t i) {
    const A sum = bias ? scores[i] + bias[i] : scores[i];
    return std::isnan(sum) ? -static_cast<A>(INFINITY) : sum;
  };
  for (int64_t i = 0; i < e; ++i) {
    int64_t j = std::min(i, k);  // where i goes among those before it
    while (j > 0 && worth(i) > worth(experts[j - 1])) {
      if (j < k) experts[j] = experts[j - 1];
      --j;
    }
    if (j < k) experts[j] = static_cast<int32_t>(i);
  }
  A sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += weights[j] = scores[experts[j]];
  const A divisor = normalise ? sum + static_cast<A>(1e-20) : 1;
  for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] / divisor * static_cast<A>(scale);
}

template <class T>
void combine(const T* x, const int32_t* places, const Arith<T>* weights, int64_t k, int64_t d, T* y) {
  for (int64_t i = 0; i < d; ++i) {
    Arith<T> sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += weights[j] * get(x[places[j] * d + i]);
    y[i] = put<T>(sum);
  }
}

}  // namespace saccade::cpu::reference
