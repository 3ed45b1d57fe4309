#include "tensor/dtype.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

namespace saccade {
namespace {

TEST(DType, SizesAndNames) {
  EXPECT_EQ(dtype_size(DType::kF32), 4u);
  EXPECT_EQ(dtype_size(DType::kBF16), 2u);
  EXPECT_EQ(dtype_size(DType::kF16), 2u);
  EXPECT_EQ(dtype_size(DType::kI64), 8u);
  EXPECT_EQ(dtype_size(DType::kI32), 4u);
  EXPECT_EQ(dtype_size(DType::kU8), 1u);
  EXPECT_EQ(std::string(dtype_name(DType::kBF16)), "BF16");
  EXPECT_EQ(std::string(dtype_name(DType::kU8)), "U8");
}

// Value of bf16 bits with the exponent range open upwards, so that the halfway point to infinity is an ordinary value.
double bf16_value(uint32_t bits) {
  const int exponent = static_cast<int>((bits >> 7) & 0xff);
  const double mantissa = bits & 0x7f;
  return exponent == 0 ? std::ldexp(mantissa, -133) : std::ldexp(128 + mantissa, exponent - 134);
}

// Round to nearest, ties to even, by comparing distances in double, where all of these are exact.
uint16_t nearest_bf16(uint32_t f32_bits) {
  const uint32_t below = (f32_bits & 0x7fffffffu) >> 16;
  const double value = std::fabs(static_cast<double>(std::bit_cast<float>(f32_bits)));
  const double down = value - bf16_value(below);
  const double up = bf16_value(below + 1) - value;
  const bool take_up = up < down || (up == down && (below & 1) != 0);
  return static_cast<uint16_t>((f32_bits >> 31 << 15) | (below + (take_up ? 1 : 0)));
}

TEST(BFloat16, RoundsToNearestEven) {
  // Every upper half with the lower halves around the decision points.
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    if ((upper & 0x7f80u) == 0x7f80u) continue;
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = upper << 16 | lower;
      ASSERT_EQ(BFloat16(std::bit_cast<float>(bits)).bits, nearest_bf16(bits)) << std::hex << bits;
    }
  }
}

TEST(BFloat16, EveryValueSurvivesTheWayToFloatAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BFloat16 value = std::bit_cast<BFloat16>(static_cast<uint16_t>(bits));
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(wide))));
    } else {
      ASSERT_EQ(BFloat16(wide).bits, bits);
    }
  }
}

TEST(BFloat16, SpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(BFloat16(kInfinity).bits, 0x7f80);
  EXPECT_EQ(BFloat16(-kInfinity).bits, 0xff80);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(BFloat16(-0.0F).bits, 0x8000);
  // NaNs whose payload is only in the bits that are cut off must not become infinity.
  for (const uint32_t bits : {0x7f800001u, 0xff80ffffu, 0x7fffffffu, 0xffc00000u}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(bits))))) << std::hex << bits;
  }
}

TEST(F16, EveryValueConvertsExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float found = f16_to_f32(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>((bits >> 10) & 0x1f);
    const double mantissa = bits & 0x3ff;
    if (exponent == 31 && mantissa != 0) {
      ASSERT_TRUE(std::isnan(found)) << std::hex << bits;
      continue;
    }
    const double magnitude = exponent == 31  ? std::numeric_limits<double>::infinity()
                             : exponent == 0 ? std::ldexp(mantissa, -24)
                                             : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(static_cast<double>(found), (bits & 0x8000u) != 0 ? -magnitude : magnitude) << std::hex << bits;
    ASSERT_EQ(std::signbit(found), (bits & 0x8000u) != 0) << std::hex << bits;
  }
}

}  // namespace
}  // namespace saccade
