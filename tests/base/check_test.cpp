#include "base/check.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <limits>

#include "base/checked.h"
#include "base/error.h"

namespace saccade {
namespace {

TEST(CheckDeathTest, PrintsConditionAndDetailThenAborts) {
  CHECK(1 + 1 == 2);
  EXPECT_DEATH(CHECK(1 > 2, "one is {}", 1), "check_test.cpp:.*check failed: 1 > 2 one is 1");
}

TEST(Check, DetailIsNotEvaluatedWhenTheConditionHolds) {
  int evaluations = 0;
  CHECK(true, "{}", ++evaluations);
  EXPECT_EQ(evaluations, 0);
}

TEST(Fail, ThrowsErrorWithTheFormattedLine) {
  try {
    fail("{}: {} bytes, expected {}", "a.json", 3, 4);
    FAIL() << "fail() returned";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "a.json: 3 bytes, expected 4");
  }
}

TEST(Checked, OverflowIsAnAnswer) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1), 0xffffffff00000000u);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_mul(0, kMax), 0u);
}

}  // namespace
}  // namespace saccade
