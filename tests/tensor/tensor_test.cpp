#include "tensor/tensor.h"

#include <gmock/gmock.h>

#include <numeric>
#include <vector>

#include "tensor/weight.h"

namespace saccade {
namespace {

class TensorOf2x3x4 : public testing::Test {
 protected:
  TensorOf2x3x4() : values_(24), t_(values_.data(), DType::kF32, {2, 3, 4}) {
    std::iota(values_.begin(), values_.end(), 0.0F);
  }

  std::vector<float> values_;
  Tensor t_;
};

TEST_F(TensorOf2x3x4, IsRowMajor) {
  EXPECT_EQ(t_.rank, 3);
  EXPECT_EQ(t_.numel(), 24);
  EXPECT_EQ(t_.bytes(), 96u);
  EXPECT_EQ(t_.stride[0], 12);
  EXPECT_EQ(t_.stride[1], 4);
  EXPECT_EQ(t_.stride[2], 1);
  EXPECT_EQ(t_.dim(-1), 4);
  EXPECT_EQ(t_.dim(-3), 2);
  EXPECT_TRUE(t_.contiguous());
  EXPECT_EQ(t_.row<float>(1)[5], 17.0F);
  EXPECT_EQ(t_.describe(), "F32[2, 3, 4]");
}

TEST_F(TensorOf2x3x4, SliceStaysContiguous) {
  const Tensor s = t_.slice(1, 2);
  EXPECT_EQ(s.describe(), "F32[1, 3, 4]");
  EXPECT_TRUE(s.contiguous());
  EXPECT_EQ(*s.as<float>(), 12.0F);
  EXPECT_EQ(t_.slice(2, 2).numel(), 0);
}

TEST_F(TensorOf2x3x4, NarrowKeepsStrides) {
  const Tensor n = t_.narrow(1, 1, 3);
  EXPECT_EQ(n.describe(), "F32[2, 2, 4]");
  EXPECT_FALSE(n.contiguous());
  EXPECT_EQ(n.row<float>(0)[0], 4.0F);
  EXPECT_EQ(n.row<float>(1)[0], 16.0F);
  const Tensor column = t_.narrow(2, 3, 4);
  EXPECT_FALSE(column.contiguous());
  EXPECT_EQ(*column.as<float>(), 3.0F);
}

TEST_F(TensorOf2x3x4, IndexDropsTheFirstDimension) {
  const Tensor row = t_[1];
  EXPECT_EQ(row.describe(), "F32[3, 4]");
  EXPECT_TRUE(row.contiguous());
  EXPECT_EQ(*row.as<float>(), 12.0F);
  EXPECT_EQ(*row[2].as<float>(), 20.0F);
  EXPECT_EQ(*t_.narrow(2, 1, 2)[1][2].as<float>(), 21.0F);
}

TEST_F(TensorOf2x3x4, ReshapeKeepsTheElements) {
  const Tensor r = t_.reshaped({6, 4});
  EXPECT_EQ(r.describe(), "F32[6, 4]");
  EXPECT_EQ(r.data, t_.data);
  EXPECT_EQ(*r[5].as<float>(), 20.0F);
}

TEST_F(TensorOf2x3x4, DimensionsOfOneDoNotBreakContiguity) {
  Tensor t = t_.slice(0, 1);
  t.stride[0] = 999;
  EXPECT_TRUE(t.contiguous());
}

using TensorDeathTest = TensorOf2x3x4;

TEST_F(TensorDeathTest, MisuseNamesTheShapes) {
  EXPECT_DEATH(t_.slice(1, 3), "axis 0 \\[1, 3\\) of F32\\[2, 3, 4\\]");
  EXPECT_DEATH(t_.slice(-1, 1), "check failed");
  EXPECT_DEATH(t_.narrow(3, 0, 1), "check failed");
  EXPECT_DEATH(t_[2], "check failed");
  EXPECT_DEATH(t_.reshaped({5, 5}), "F32\\[2, 3, 4\\] to F32\\[5, 5\\]");
  EXPECT_DEATH(t_.narrow(1, 0, 1).reshaped({8}), "reshape of a strided tensor F32\\[2, 1, 4\\]");
  EXPECT_DEATH(t_.as<BFloat16>(), "tensor is F32, asked for as BF16");
}

TEST(Tensor, EmptyAndScalar) {
  EXPECT_FALSE(Tensor());
  int32_t value = 7;
  const Tensor scalar(&value, DType::kI32, {});
  EXPECT_EQ(scalar.numel(), 1);
  EXPECT_TRUE(scalar.contiguous());
  EXPECT_EQ(scalar.describe(), "I32[]");
}

TEST(Weight, CountsRowsAndBytesOfItsParts) {
  std::vector<float> storage(64);
  Weight w;
  w.parts = 2;
  w.data[0] = Tensor(storage.data(), DType::kF32, {3, 4});
  w.data[1] = Tensor(storage.data(), DType::kF32, {5, 4});
  w.bias[1] = Tensor(storage.data(), DType::kF32, {5});
  EXPECT_EQ(w.rows(), 8);
  EXPECT_EQ(w.cols(), 4);
  EXPECT_EQ(w.bytes(), (12u + 20u + 5u) * 4u);
}

}  // namespace
}  // namespace saccade
