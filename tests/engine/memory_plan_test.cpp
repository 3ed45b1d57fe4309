#include "engine/memory_plan.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "engine/placement.h"

namespace saccade {
namespace {

using ::testing::HasSubstr;

constexpr size_t kGiB = size_t{1} << 30;

// 1 MiB of KV cache a page, 16 KiB a token.
MemoryNeeds needs() {
  return {.weights = 2 * kGiB,
          .mapped_weights = 0,
          .weights_per_token = 7 * kGiB,
          .vision = kGiB / 2,
          .workspace = kGiB / 2,
          .max_context = 32768,
          .kv = {.layers = 4, .values_per_token = 2048, .dtype = DType::kBF16}};
}

const EngineOptions kDefaults = with_defaults({}, {});  // of the CPU

std::string refusal(const MemoryNeeds& n, const EngineOptions& options, size_t available) {
  try {
    plan_memory(n, options, available);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(MemoryPlan, HoldsTheWholeBatchWhereMemoryAllows) {
  EngineOptions options = kDefaults;
  options.max_batch = 4;
  const MemoryPlan plan = plan_memory(needs(), options, 64 * kGiB);
  EXPECT_EQ(plan.context_tokens, 4 * 32768);
  EXPECT_EQ(plan.kv_bytes, 2 * kGiB);
  EXPECT_EQ(plan.kv_bytes_per_token, 16u << 10);
  EXPECT_EQ(plan.weight_bytes, 2 * kGiB);
  EXPECT_EQ(plan.available_bytes, 64 * kGiB);
  EXPECT_EQ(context_limit(plan, options, 32768), 32768);
  options.max_context = 1000;
  EXPECT_EQ(plan_memory(needs(), options, 64 * kGiB).context_tokens, 4 * 1024);
  EXPECT_EQ(context_limit(plan, options, 32768), 1000);
}

TEST(MemoryPlan, TakesHalfOfWhatIsLeft) {
  const EngineOptions& options = kDefaults;
  const MemoryPlan plan = plan_memory(needs(), options, 3 * kGiB + kGiB / 2);
  EXPECT_EQ(plan.kv_bytes, kGiB / 4);
  EXPECT_EQ(context_limit(plan, options, 32768), 16384);
}

TEST(MemoryPlan, MappedWeightsClaimHalfOfTheRoomAtMost) {
  MemoryNeeds n = needs();
  n.weights = 100 * kGiB;
  EXPECT_THAT(refusal(n, kDefaults, 9 * kGiB), HasSubstr("does not fit"));
  std::swap(n.weights, n.mapped_weights);
  const MemoryPlan plan = plan_memory(n, kDefaults, 9 * kGiB);
  EXPECT_TRUE(plan.weights_mapped);
  EXPECT_TRUE(plan.weights_exceed_memory());
  EXPECT_EQ(plan.weight_bytes, 100 * kGiB);
  EXPECT_EQ(plan.weight_bytes_owned, 0u);
  EXPECT_EQ(plan.weight_bytes_per_token, 7 * kGiB);
  EXPECT_EQ(plan.kv_bytes, (9 - 1 - 4) * kGiB / 2);
  n.mapped_weights = 9 * kGiB;
  EXPECT_FALSE(plan_memory(n, kDefaults, 9 * kGiB).weights_exceed_memory());
  EXPECT_FALSE(plan_memory(needs(), kDefaults, 9 * kGiB).weights_mapped);
}

TEST(MemoryPlan, MappedWeightsAreNeverWhatDoesNotFit) {
  MemoryNeeds n = needs();
  n.weights = 0;
  n.mapped_weights = 1000 * kGiB;
  n.vision = 3 * kGiB;  // with the step most of the memory: half of it for weights would not fit beside
  EXPECT_EQ(plan_memory(n, kDefaults, 4 * kGiB).kv_bytes, kGiB / 8);
  EngineOptions options = kDefaults;
  options.kv_bytes = kGiB / 2;
  EXPECT_EQ(plan_memory(n, options, 4 * kGiB).kv_bytes, kGiB / 2);
  options.kv_bytes = kGiB;
  EXPECT_THAT(refusal(n, options, 4 * kGiB), HasSubstr("kv_bytes: 0.50 GiB are left"));
  EXPECT_THAT(refusal(n, kDefaults, 3 * kGiB), HasSubstr("weights take 0.00 beside what is mapped"));
}

TEST(MemoryPlan, ConvertedWeightsMustFit) {
  MemoryNeeds n = needs();
  n.weights = 20 * kGiB;
  n.mapped_weights = 6 * kGiB;
  EXPECT_THAT(refusal(n, kDefaults, 20 * kGiB), HasSubstr("weights take 20.00"));
  const MemoryPlan plan = plan_memory(n, kDefaults, 25 * kGiB);
  EXPECT_EQ(plan.weight_bytes, 26 * kGiB);
  EXPECT_EQ(plan.weight_bytes_owned, 20 * kGiB);
  EXPECT_FALSE(plan.weights_exceed_memory());
}

TEST(MemoryPlan, SaysWhatWouldFit) {
  EXPECT_THAT(refusal(needs(), kDefaults, 3 * kGiB), HasSubstr("does not fit"));
  EXPECT_THAT(refusal(needs(), kDefaults, 3 * kGiB + (1 << 20)), HasSubstr("a page of 64 tokens"));
  EngineOptions options = kDefaults;
  options.max_context = 20000;
  EXPECT_THAT(refusal(needs(), options, 3 * kGiB + kGiB / 2), HasSubstr("16384 tokens fit"));
  options.max_context = 40000;
  EXPECT_THAT(refusal(needs(), options, 64 * kGiB), HasSubstr("32768"));
}

TEST(MemoryPlan, TakesTheSizeGiven) {
  EngineOptions options = kDefaults;
  options.kv_bytes = (3 << 20) + 5;
  const MemoryPlan plan = plan_memory(needs(), options, 64 * kGiB);
  EXPECT_EQ(plan.kv_bytes, 3u << 20);
  EXPECT_EQ(plan.context_tokens, 192);
  options.kv_bytes = 1000;
  EXPECT_THAT(refusal(needs(), options, 64 * kGiB), HasSubstr("kv_bytes"));
  options.kv_bytes = 62 * kGiB;
  EXPECT_THAT(refusal(needs(), options, 64 * kGiB), HasSubstr("kv_bytes"));
}

TEST(MemoryPlan, SurvivesAbsurdNumbers) {
  MemoryNeeds n = needs();
  n.vision = SIZE_MAX;
  EXPECT_THAT(refusal(n, kDefaults, 64 * kGiB), HasSubstr("does not fit"));
  n = needs();
  n.kv.values_per_token = INT64_MAX;
  EXPECT_THAT(refusal(n, kDefaults, 64 * kGiB), HasSubstr("kv cache"));
  EXPECT_EQ(refusal(needs(), kDefaults, 0), "");  // memory unknown
}

TEST(CheckOptions, NamesTheField) {
  const auto message = [](auto change) -> std::string {
    EngineOptions options;
    change(options);
    try {
      check_options(options);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_THAT(message([](auto& o) { o.threads = -1; }), HasSubstr("threads"));
  EXPECT_THAT(message([](auto& o) { o.max_batch = -1; }), HasSubstr("max_batch:"));
  EXPECT_THAT(message([](auto& o) { o.max_batch_tokens = o.max_batch - 1; }), HasSubstr("max_batch_tokens"));
  EXPECT_THAT(message([](auto& o) { o.max_queue = 0; }), HasSubstr("max_queue"));
  EXPECT_THAT(message([](auto& o) { o.max_context = -5; }), HasSubstr("max_context"));
}

}  // namespace
}  // namespace saccade
