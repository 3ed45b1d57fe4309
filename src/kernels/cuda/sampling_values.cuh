// Keys, bins and weights of logits, and the random numbers that choose among them.
#pragma once

#include "kernels/cuda/team.cuh"

namespace saccade::cuda {

// Keys are ordered as the values, and -0 is 0; 0 is below all of them. NaN is not looked for.
inline constexpr uint32_t kMinusInfinityKey = 0x007fffff;
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int>(bits) >> 31) | 0x80000000u);
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The keys of a lane: `share` neighbours in memory, a multiple of four, for ids from `begin` on.
struct Keys {
  uint32_t* at;
  int share, begin;
};

// 53 random bits: those of uniform() in engine/sampler.cpp.
__device__ inline u64 philox(u64 seed, u64 position) {
  uint32_t x[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 p0 = u64{0xD2511F53} * x[0], p1 = u64{0xCD9E8D57} * x[2];
    x[0] = static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0;
    x[2] = static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1;
    x[1] = static_cast<uint32_t>(p1);
    x[3] = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (u64{x[0]} << 32 | x[1]) >> 11;
}

inline constexpr double kOne = 0x1p44;  // as a fixed-point weight; none is more

// Weights e^((x - max) / T) of keys, without branches.
struct Weigh {
  double max, scale;  // log2(e) / T

  template <int n>
  __device__ __forceinline__ void operator()(const uint32_t (&keys)[n], u64 (&weights)[n]) const {
    constexpr double kInteger = 0x1.8p52;  // adding it leaves a rounded integer in the low bits
    // (2^f - 1) / f for |f| <= 1/2, interpolated at the Chebyshev nodes: 2^f to 2^-44.6
    constexpr double kPower[] = {0.6931471805599453,    0.2402265069581299,     0.055504108664760424,
                                 0.009618129159402558,  0.0013333558179043112,  0.00015403455852453838,
                                 1.525268684626772e-05, 1.3255224878668817e-06, 1.0203121063391729e-07};
#pragma unroll
    for (int u = 0; u < n; ++u) {
      const double y = (static_cast<double>(value_of(keys[u])) - max) * scale, whole = y + kInteger;
      const double f = y - (whole - kInteger);
      double p = kPower[8];
#pragma unroll
      for (int i = 7; i >= 0; --i) p = fma(p, f, kPower[i]);
      const double unit = __hiloint2double((1023 + 44 + __double2loint(whole)) << 20, 0);  // kOne * 2^whole
      const u64 bits = __double_as_longlong(fma(fma(p, f, 1.0), unit, 0x1p52)) & ((u64{1} << 52) - 1);
      weights[u] = y > -46 ? bits : 0;
    }
  }
};

// That of one key.
__device__ __noinline__ u64 weight_of(uint32_t key, double max, double scale) {
  const uint32_t keys[] = {key};
  u64 weights[1];
  Weigh{max, scale}(keys, weights);
  return weights[0];
}

// Weights of a lane's keys, which may stay in shared memory.
struct Weights {
  Weigh weigh;
  ulonglong2* kept;  // of keys 2 i and 2 i + 1 at kept[i * stride]; null: there is no room
  int stride;

  // Of keys i to i + 3 of the lane; and again.
  __device__ __forceinline__ void keep(int i, const uint32_t (&keys)[4], u64 (&weights)[4]) const {
    weigh(keys, weights);
    if (kept == nullptr) return;
    kept[i / 2 * stride] = {weights[0], weights[1]};
    kept[(i / 2 + 1) * stride] = {weights[2], weights[3]};
  }
  __device__ __forceinline__ void kept_of(int i, const uint32_t (&keys)[4], u64 (&weights)[4]) const {
    if (kept == nullptr) return weigh(keys, weights);
    const ulonglong2 a = kept[i / 2 * stride], b = kept[(i / 2 + 1) * stride];
    weights[0] = a.x, weights[1] = a.y, weights[2] = b.x, weights[3] = b.y;
  }
  __device__ u64 operator()(uint32_t key) const { return weight_of(key, weigh.max, weigh.scale); }
};

inline constexpr int kBins = 1024, kBinBits = 10;

// Bins of a range of keys, the highest first, without the last one. Where exponents vary, equal steps of the value
// spread tokens best; otherwise, and in ranges too wide for that, bins are keys with the same leading bits.
struct Bins {
  int shift;
  float scale;  // a power of two, or 0: by bits
  int top;

  __device__ Bins(uint32_t low, uint32_t high) {
    const float x = value_of(high), y = value_of(low), range = x - y;
    shift = std::max(0, 32 - kBinBits - __clz(static_cast<int>(high - low)));
    if ((high >> shift) - (low >> shift) >= kBins - 1) ++shift;
    top = static_cast<int>(high >> shift);
    scale = 0;
    if (range > 1e-30f && range < 1024 && range * 128 > std::max(fabsf(x), fabsf(y))) {
      scale = __uint_as_float((__float_as_uint(__fdividef(0.98f * kBins, range)) & 0x7f800000u));
      top = floor_bits(x);
    }
  }
  __device__ uint32_t of(uint32_t key) const {
    return static_cast<uint32_t>(top - (scale == 0 ? static_cast<int>(key >> shift) : floor_bits(value_of(key))));
  }
  __device__ uint32_t lowest(int bin) const {
    const int at = top - bin;
    if (scale == 0) return static_cast<uint32_t>(at) << shift;
    return key_of((__int_as_float(at) - kInteger) * __uint_as_float(0x7f000000u - __float_as_uint(scale)));
  }

 private:
  // The bits of kInteger + floor(x * scale), which rise with it.
  static constexpr float kInteger = 0x1.8p23f;
  __device__ int floor_bits(float x) const { return __float_as_int(__fmaf_rd(x, scale, kInteger)); }
};

}  // namespace saccade::cuda
