// The two passes of Pillow's resampling, scalar and AVX2, with identical results.
//
// A weight is a signed number with 22 fractional bits; a sample is sum(weight * byte) + 2^21, shifted right by 22 and
// clipped to 0..255. Sums are taken modulo 2^32, which is exact: the true sum fits in 32 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saccade::media {

inline constexpr int kWeightBits = 22;

// One direction of a resize: output sample i is taken from inputs [first[i], first[i] + count[i]).
struct Resampling {
  int in = 0, out = 0;
  int taps = 0;  // row length of `weights`: the largest count, rounded up to a multiple of 4; the rest is zero
  std::vector<int> first, count;
  std::vector<int32_t> weights;  // [out, taps]

  const int32_t* row(int i) const { return weights.data() + static_cast<size_t>(i) * static_cast<size_t>(taps); }
};

// Bicubic with a = -0.5, widened by the scale when shrinking (Pillow's precompute_coeffs and normalize_coeffs_8bpc).
Resampling bicubic_resampling(int in, int out);

// The picture between the passes is rounded to bytes, so their order shows in the result. Pillow 13 goes down first
// where the height loses more than twice what the width loses; earlier versions never do. A direction whose size does
// not change has no pass.
inline bool down_before_across(int width, int height, int new_width, int new_height) {
  return height > new_height && height - new_height > (width - new_width) * 2;
}

struct Rows {
  const uint8_t* data = nullptr;  // RGB
  size_t stride = 0;              // bytes
  const uint8_t* end = nullptr;   // of the memory that may be read
};

// in: `count` rows of plan.in pixels; out: rows of plan.out pixels, packed.
using HorizontalPass = void (*)(const Rows& in, int count, const Resampling& plan, uint8_t* out);
// One output row of `bytes` bytes: sum over `taps` rows that start at `in`, `bytes` apart.
using VerticalPass = void (*)(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out);

void horizontal_scalar(const Rows& in, int count, const Resampling& plan, uint8_t* out);
void vertical_scalar(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out);

// Whether this machine has AVX2; without it the two functions below must not be called.
bool have_avx2();
void horizontal_avx2(const Rows& in, int count, const Resampling& plan, uint8_t* out);
void vertical_avx2(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out);

}  // namespace saccade::media
