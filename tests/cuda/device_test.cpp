#include "cuda/cuda_test.h"

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

}  // namespace
}  // namespace saccade
