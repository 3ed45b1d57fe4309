#include "tensor/expect.h"

#include <gmock/gmock.h>

#include <vector>

namespace saccade {
namespace {

class ExpectDeathTest : public testing::Test {
 protected:
  std::vector<float> values_ = std::vector<float>(24);
  Tensor x_{values_.data(), DType::kF32, {4, 6}};
  Tensor w_{values_.data(), DType::kF32, {3, 6}};
};

TEST_F(ExpectDeathTest, TheFirstTensorBindsADimension) {
  Dim T{"T"}, K{"K"}, N{"N"};
  expect(x_, "x").shape(T, K).dtype(DType::kF32, DType::kBF16).contiguous();
  expect(w_, "w").shape(N, K);
  EXPECT_EQ(T, 4);
  EXPECT_EQ(K, 6);
  EXPECT_EQ(N, 3);
  expect(w_, "w").shape(3, K);
}

TEST_F(ExpectDeathTest, DisagreementNamesTensorDimensionAndBothSizes) {
  Dim T{"T"}, K{"K"};
  expect(x_, "x").shape(T, K);
  EXPECT_DEATH(expect(w_, "w").shape(T, K), "w: F32\\[3, 6\\] has 3 in dimension 0 \\(T\\), expected 4");
  EXPECT_DEATH(expect(w_, "w").shape(3, 7), "w: F32\\[3, 6\\] has 6 in dimension 1, expected 7");
  EXPECT_DEATH(expect(w_, "w").shape(K), "w: rank F32\\[3, 6\\], expected 1");
  EXPECT_DEATH(expect(w_, "w").dtype(DType::kBF16, DType::kI32), "w: unexpected dtype of F32\\[3, 6\\]");
  EXPECT_DEATH(expect(w_.narrow(1, 0, 2), "w").contiguous(), "w: F32\\[3, 2\\] must be contiguous");
}

}  // namespace
}  // namespace saccade
