#include "engine/runner.h"

#include <gmock/gmock.h>

namespace saccade {
namespace {

using ::testing::ElementsAre;

TEST(FloatTap, GivesContiguousFloats) {
  std::string name;
  std::vector<float> data;
  std::vector<int64_t> shape;
  const Tap tap = float_tap([&](std::string_view n, const float* d, const int64_t* s, int rank) {
    name = n;
    shape.assign(s, s + rank);
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    data.assign(d, d + count);
  });

  const int32_t ints[] = {1, 2, 3, 4, 5, 6};
  tap("ints", Tensor(ints, DType::kI32, {2, 3}).narrow(1, 1, 3));
  EXPECT_EQ(name, "ints");
  EXPECT_THAT(shape, ElementsAre(2, 2));
  EXPECT_THAT(data, ElementsAre(2, 3, 5, 6));

  const BFloat16 halves[] = {BFloat16(0.5f), BFloat16(-2.0f)};
  tap("bf16", Tensor(halves, DType::kBF16, {2, 1}));
  EXPECT_THAT(data, ElementsAre(0.5f, -2.0f));
  const uint16_t f16[] = {0x3c00, 0xc000};
  tap("f16", Tensor(f16, DType::kF16, {2}));
  EXPECT_THAT(data, ElementsAre(1.0f, -2.0f));
  const float floats[] = {0.25f};
  tap("f32", Tensor(floats, DType::kF32, {1}));
  EXPECT_THAT(data, ElementsAre(0.25f));
  const int64_t longs[] = {-7};
  tap("i64", Tensor(longs, DType::kI64, {1}));
  EXPECT_THAT(data, ElementsAre(-7.0f));
  const uint8_t bytes[] = {200};
  tap("u8", Tensor(bytes, DType::kU8, {1}));
  EXPECT_THAT(data, ElementsAre(200.0f));
  tap("none", Tensor(floats, DType::kF32, {0, 4}));
  EXPECT_THAT(data, ElementsAre());
}

TEST(FloatTap, IsEmptyWithoutAUser) { EXPECT_FALSE(float_tap({})); }

}  // namespace
}  // namespace saccade
