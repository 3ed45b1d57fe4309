#include <algorithm>

#include "cuda/cuda_test.h"
#include "tensor/staging.h"

namespace saccade {
namespace {

class Layout : public testing::Test {};

TEST_F(Layout, StripsHoldEveryElementOnce) {
  constexpr int64_t kN = 48, kK = 128;
  std::vector<bool> seen(kN * kK);
  for (int64_t n = 0; n < kN; ++n)
    for (int64_t k = 0; k < kK; ++k) {
      const auto at = static_cast<size_t>(cuda::strip_offset(n, k, cuda::blocks_of(kK)));
      ASSERT_LT(at, seen.size());
      EXPECT_FALSE(seen[at]);
      seen[at] = true;
    }
}

TEST_F(Layout, PagesHoldEveryElementOnce) {
  std::vector<bool> seen(64 * 128);
  for (int64_t token = 0; token < 64; ++token)
    for (int64_t place = 0; place < 128; ++place) {
      const auto at = static_cast<size_t>(cuda::kv_offset(token, place));
      ASSERT_LT(at, seen.size());
      EXPECT_FALSE(seen[at]);
      seen[at] = true;
    }
}

TEST_F(Layout, PairsStandEightRowsApart) {
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(cuda::paired_row(i, 1), cuda::paired_row(i, 0) + 8);
    EXPECT_EQ(cuda::paired_row(i, 0) / cuda::kStripRows, i / 8);
  }
}

class DeviceTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) stream_ = device::new_stream();
  }
  void TearDown() override {
    if (stream_) device::delete_stream(stream_);
  }
  Stream stream_ = nullptr;
};

// Turns come round while the stream still has much to do; pieces fit, just fit and do not fit what a turn holds.
TEST_F(DeviceTest, StagedCopiesHaveWhatWasThereAtTheCall) {
  DeviceMemory memory;
  const Tensor busy = memory.poison(DType::kU8, {int64_t{1} << 30});
  Staging staging;
  std::vector<Tensor> copies;
  std::vector<uint8_t> values;
  for (int turn = 0; turn < 5; ++turn) {
    for (int i = 0; i < 4; ++i) device::fill_zero(busy.data, busy.bytes(), stream_);
    staging.begin_turn(stream_);
    for (const int64_t bytes : {int64_t{3}, int64_t{24} << 20, int64_t{1} << 20, int64_t{60} << 20}) {
      copies.push_back(memory.poison(DType::kU8, {bytes}));
      values.push_back(static_cast<uint8_t>(copies.size()));
      std::vector<uint8_t> host(static_cast<size_t>(bytes), values.back());
      staging.copy(copies.back().data, host.data(), host.size(), stream_);
      std::ranges::fill(host, uint8_t{0});
    }
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    const auto got = download<uint8_t>(copies[i]);
    EXPECT_EQ(std::count(got.begin(), got.end(), values[i]), std::ssize(got)) << "copy " << i;
  }
}

// What the stream still does with a buffer comes before its next use.
TEST_F(DeviceTest, BuffersOfAStreamAreReusedInItsOrder) {
  constexpr size_t kBytes = size_t{64} << 20;
  DeviceMemory memory;
  std::vector<Tensor> copies;
  for (int i = 0; i < 8; ++i) {
    copies.push_back(memory.poison(DType::kU8, {int64_t{kBytes}}));
    const Buffer buffer(kBytes, Memory::kCuda, stream_);
    cuda::check(cudaMemsetAsync(buffer.data(), i, kBytes, stream_), "fill");
    device::copy(copies.back().data, buffer.data(), kBytes, stream_);
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    const auto got = download<uint8_t>(copies[i]);
    EXPECT_EQ(std::count(got.begin(), got.end(), static_cast<uint8_t>(i)), std::ssize(got));
  }
}

}  // namespace
}  // namespace saccade
