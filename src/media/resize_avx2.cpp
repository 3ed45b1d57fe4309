// A weight of 23 bits is split as high * 2^15 + low, so that pmaddwd takes two taps at a time.
#include "media/resample.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define SACCADE_AVX2 __attribute__((target("avx2")))

namespace saccade::media {
namespace {

constexpr int kLowBits = 15;
constexpr int kMargin = 16;  // a load takes 16 bytes where 12 are used

struct WeightPair {
  int32_t low, high;  // two int16 each
};

WeightPair split(int32_t a, int32_t b) {
  const auto pack = [](int32_t x, int32_t y) {
    return static_cast<int32_t>((static_cast<uint32_t>(y) << 16) | (static_cast<uint32_t>(x) & 0xffffu));
  };
  constexpr int32_t kMask = (1 << kLowBits) - 1;
  return {pack(a & kMask, b & kMask), pack(a >> kLowBits, b >> kLowBits)};
}

// (high * 2^15 + low + 2^21) >> 22 of eight lanes.
SACCADE_AVX2 inline __m256i finish(__m256i low, __m256i high) {
  const __m256i half = _mm256_set1_epi32(1 << (kWeightBits - 1));
  return _mm256_srai_epi32(_mm256_add_epi32(_mm256_add_epi32(low, half), _mm256_slli_epi32(high, kLowBits)),
                           kWeightBits);
}

SACCADE_AVX2 inline __m256i load_two(const uint8_t* a, const uint8_t* b) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
}

// Two rows, one in each half of the registers. `pairs` [out, taps / 2].
SACCADE_AVX2 void two_rows(const uint8_t* row0, const uint8_t* row1, const Resampling& plan, const WeightPair* pairs,
                           uint8_t* out0, uint8_t* out1) {
  // Bytes RGB RGB RGB RGB of four pixels to words R0 R1 G0 G1 B0 B1 and R2 R3 G2 G3 B2 B3.
  const __m256i first =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i second =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m256i bytes =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const int quads = plan.taps / 4;
  for (int x = 0; x < plan.out; ++x) {
    const size_t at = static_cast<size_t>(plan.first[static_cast<size_t>(x)]) * 3;
    const int used = (plan.count[static_cast<size_t>(x)] + 3) / 4;
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int q = 0; q < used; ++q) {
      const size_t offset = at + static_cast<size_t>(q) * 12;
      const __m256i pixels = load_two(row0 + offset, row1 + offset);
      const __m256i a = _mm256_shuffle_epi8(pixels, first), b = _mm256_shuffle_epi8(pixels, second);
      const WeightPair* w = pairs + 2 * q;
      low = _mm256_add_epi32(low, _mm256_madd_epi16(a, _mm256_set1_epi32(w[0].low)));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(a, _mm256_set1_epi32(w[0].high)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(b, _mm256_set1_epi32(w[1].low)));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(b, _mm256_set1_epi32(w[1].high)));
    }
    pairs += 2 * quads;
    __m256i sum = finish(low, high);
    sum = _mm256_min_epi32(_mm256_max_epi32(sum, _mm256_setzero_si256()), _mm256_set1_epi32(255));
    sum = _mm256_shuffle_epi8(sum, bytes);
    const int rgb0 = _mm256_extract_epi32(sum, 0), rgb1 = _mm256_extract_epi32(sum, 4);
    // Four bytes where three belong: the next pixel overwrites the fourth, which the last pixel must not write.
    const size_t n = x + 1 < plan.out ? 4 : 3;
    std::memcpy(out0 + 3 * static_cast<size_t>(x), &rgb0, n);
    std::memcpy(out1 + 3 * static_cast<size_t>(x), &rgb1, n);
  }
}

}  // namespace

bool have_avx2() { return __builtin_cpu_supports("avx2"); }

void horizontal_avx2(const Rows& in, int count, const Resampling& plan, uint8_t* out) {
  std::vector<WeightPair> pairs(plan.weights.size() / 2);
  for (size_t i = 0; i < pairs.size(); ++i) pairs[i] = split(plan.weights[2 * i], plan.weights[2 * i + 1]);
  // Zero weights reach up to three pixels past the row, and loads a little further.
  const size_t row_bytes = static_cast<size_t>(plan.in) * 3, margin = 9 + kMargin;
  const size_t out_row = static_cast<size_t>(plan.out) * 3;
  std::vector<uint8_t> copy0, copy1;
  const auto readable = [&](const uint8_t* row, std::vector<uint8_t>& copy) {
    if (static_cast<size_t>(in.end - row) >= row_bytes + margin) return row;
    copy.assign(row, row + row_bytes);
    copy.resize(row_bytes + margin);
    return static_cast<const uint8_t*>(copy.data());
  };
  std::vector<uint8_t> spare(count % 2 ? out_row : 0);
  for (int y = 0; y < count; y += 2) {
    const bool pair = y + 1 < count;
    const uint8_t* row = in.data + static_cast<size_t>(y) * in.stride;
    const uint8_t* row0 = readable(row, copy0);
    const uint8_t* row1 = pair ? readable(row + in.stride, copy1) : row0;
    uint8_t* out0 = out + static_cast<size_t>(y) * out_row;
    two_rows(row0, row1, plan, pairs.data(), out0, pair ? out0 + out_row : spare.data());
  }
}

SACCADE_AVX2 void vertical_avx2(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out) {
  constexpr size_t kStep = 32;
  size_t x = 0;
  for (; x + kStep <= bytes; x += kStep) {
    __m256i low[4], high[4];
    for (int i = 0; i < 4; ++i) low[i] = high[i] = _mm256_setzero_si256();
    for (int k = 0; k < taps; k += 2) {
      const bool two = k + 1 < taps;
      const uint8_t* p = in + static_cast<size_t>(k) * bytes + x;
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      const __m256i b = two ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + bytes)) : a;
      const WeightPair w = split(weights[k], two ? weights[k + 1] : 0);
      const __m256i wl = _mm256_set1_epi32(w.low), wh = _mm256_set1_epi32(w.high), zero = _mm256_setzero_si256();
      const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
      const __m256i words[4] = {_mm256_unpacklo_epi8(ab_low, zero), _mm256_unpackhi_epi8(ab_low, zero),
                                _mm256_unpacklo_epi8(ab_high, zero), _mm256_unpackhi_epi8(ab_high, zero)};
      for (int i = 0; i < 4; ++i) {
        low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(words[i], wl));
        high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(words[i], wh));
      }
    }
    const __m256i left = _mm256_packs_epi32(finish(low[0], high[0]), finish(low[1], high[1]));
    const __m256i right = _mm256_packs_epi32(finish(low[2], high[2]), finish(low[3], high[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), _mm256_packus_epi16(left, right));
  }
  for (; x < bytes; ++x) {
    int32_t sum = 1 << (kWeightBits - 1);
    for (int k = 0; k < taps; ++k) sum += in[static_cast<size_t>(k) * bytes + x] * weights[k];
    sum >>= kWeightBits;
    out[x] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
  }
}

}  // namespace saccade::media

#else

namespace saccade::media {

bool have_avx2() { return false; }
void horizontal_avx2(const Rows& in, int count, const Resampling& plan, uint8_t* out) {
  horizontal_scalar(in, count, plan, out);
}
void vertical_avx2(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out) {
  vertical_scalar(in, bytes, weights, taps, out);
}

}  // namespace saccade::media

#endif
