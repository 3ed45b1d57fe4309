// Elementary functions on vectors, in float.
#pragma once

namespace saccade::cpu {

// e^x to about 1 ulp; 0 below -104, infinity above 88.8.
template <class S>
[[gnu::always_inline]] inline typename S::F exp(typename S::F x) {
  using F = typename S::F;
  x = S::max(S::set(-105.0F), S::min(S::set(89.0F), x));
  const F n = S::round(x * S::set(1.44269504F));
  F r = S::fma(n, S::set(-0.693145751953125F), x);  // ln 2 in two parts, the first with few bits: n times it is exact
  r = S::fma(n, S::set(-1.42860677e-6F), r);
  F p = S::set(1.0F / 5040);  // |r| < 0.347: the next Taylor term is below 1e-8
  p = S::fma(p, r, S::set(1.0F / 720));
  p = S::fma(p, r, S::set(1.0F / 120));
  p = S::fma(p, r, S::set(1.0F / 24));
  p = S::fma(p, r, S::set(1.0F / 6));
  p = S::fma(p, r, S::set(0.5F));
  p = S::fma(p, r, S::set(1.0F));
  p = S::fma(p, r, S::set(1.0F));
  return S::times_power_of_two(p, n);
}

template <class S>
[[gnu::always_inline]] inline typename S::F silu(typename S::F x) {
  return x / (S::set(1) + exp<S>(S::set(0) - x));
}

// x * Phi(x), Phi by the complementary error function so that the left tail keeps its relative precision:
// erfc(z) = t exp(-z^2 + p(t)), t = 1 / (1 + z/2), p the polynomial of degree 9 closest to ln(erfcx(z) / t) over
// 0 <= z <= 17 (Chebyshev nodes; 8e-8 off).
template <class S>
[[gnu::always_inline]] inline typename S::F gelu(typename S::F x) {
  using F = typename S::F;
  const F z = S::min(S::set(17.0F), S::abs(x) * S::set(0.70710678F));
  const F t = S::set(1) / S::fma(z, S::set(0.5F), S::set(1));
  F p = S::set(0.172177628F);
  p = S::fma(p, t, S::set(-0.826409101F));
  p = S::fma(p, t, S::set(1.49185395F));
  p = S::fma(p, t, S::set(-1.13101268F));
  p = S::fma(p, t, S::set(0.268727064F));
  p = S::fma(p, t, S::set(-0.177782640F));
  p = S::fma(p, t, S::set(0.0930531397F));
  p = S::fma(p, t, S::set(0.374983639F));
  p = S::fma(p, t, S::set(0.999916315F));
  p = S::fma(p, t, S::set(-1.26550722F));
  const F zz = z * z;
  const F lost = S::fma(z, z, S::set(0) - zz);  // what rounding z^2 lost matters in the tail
  const F tail = S::set(0.5F) * t * exp<S>(p - zz) * (S::set(1) - lost);
  return x * S::where_negative(x, tail, S::set(1) - tail);
}

// x / 2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + e^-2u).
template <class S>
[[gnu::always_inline]] inline typename S::F gelu_tanh(typename S::F x) {
  const auto minus_twice_u = S::set(-1.59576912F) * x * S::fma(x * x, S::set(0.044715F), S::set(1));
  return x / (S::set(1) + exp<S>(minus_twice_u));
}

}  // namespace saccade::cpu
