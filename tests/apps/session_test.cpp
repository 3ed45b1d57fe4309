#include "session.h"

#include <gmock/gmock.h>

namespace saccade::apps {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(DescribePlan, SaysWhatWeightsLargerThanMemoryCost) {
  constexpr size_t kGiB = size_t{1} << 30;
  MemoryPlan plan;
  plan.weight_bytes = 32 * kGiB;
  plan.weights_mapped = true;
  plan.weight_bytes_per_token = 5 * kGiB;
  plan.available_bytes = 22 * kGiB;
  EXPECT_THAT(describe_plan(plan),
              HasSubstr("22.00 GiB free\nweights: 32.00 GiB are mapped from files and exceed the free memory (22.00 "
                        "GiB): what does not stay cached is read from disk again, up to 5.00 GiB for each token"));
  plan.available_bytes = 40 * kGiB;
  EXPECT_THAT(describe_plan(plan), Not(HasSubstr("\n")));
  EXPECT_THAT(describe_plan(plan), HasSubstr("weights 32.00 GiB (mapped), KV"));
  plan.weight_bytes_owned = 30 * kGiB;
  plan.available_bytes = 31 * kGiB;
  EXPECT_THAT(describe_plan(plan), Not(HasSubstr("\n")));
  EXPECT_THAT(describe_plan(plan), HasSubstr("weights 32.00 GiB (mapped; 30.00 GiB converted), KV"));
}

}  // namespace
}  // namespace saccade::apps
