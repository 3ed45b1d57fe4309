#include "engine/placement.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace saccade {
namespace {

using ::testing::HasSubstr;

ModelSummary model(bool cuda) {
  ModelSummary summary;
  summary.info.architecture = "some-model";
  summary.cuda = cuda;
  summary.cuda_weight_bytes = 1;
  return summary;
}

std::string refusal(const std::string& device, const ModelSummary& summary) {
  try {
    place(device, summary);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Placement, TheCpuIsAlwaysThere) {
  const Placement p = place("cpu", model(true));
  EXPECT_FALSE(p.cuda());
  EXPECT_EQ(p.name, "cpu");
  EXPECT_GT(p.available, 0u);
}

TEST(Placement, AutoTakesTheCpuForAModelWithoutCudaKernels) { EXPECT_FALSE(place("auto", model(false)).cuda()); }

TEST(Placement, AutoTakesTheCpuForWeightsThatFitNoDevice) {
  ModelSummary huge = model(true);
  huge.cuda_weight_bytes = SIZE_MAX;
  EXPECT_FALSE(place("auto", huge).cuda());
}

TEST(Placement, RefusesOtherNames) {
  for (const char* name : {"", "gpu", "CUDA", "cpu:0", "cuda0"})
    EXPECT_THAT(refusal(name, model(true)), HasSubstr("device: expected auto, cpu, cuda or cuda:N")) << name;
}

TEST(Placement, SaysWhyCudaCannotBeHad) {
  const std::string error = refusal("cuda:4096", model(true));
  if (!device::kCudaBuilt)
    EXPECT_THAT(error, HasSubstr("this build has no CUDA"));
  else
    EXPECT_THAT(error, HasSubstr("cuda:4096 is not there"));
  if (!device::kCudaBuilt) return;
  EXPECT_THAT(refusal("cuda:x", model(true)), HasSubstr("expected a number"));
  EXPECT_THAT(refusal("cuda", model(false)), HasSubstr("some-model runs on the CPU only"));
}

TEST(Placement, DefaultsAreTheDevices) {
  const EngineOptions cpu = with_defaults({}, {});
  EXPECT_EQ(cpu.max_batch, 16);
  EXPECT_EQ(cpu.max_batch_tokens, 512);
  const EngineOptions cuda = with_defaults({}, {.memory = Memory::kCuda, .index = 0, .name = {}, .available = 0});
  EXPECT_EQ(cuda.max_batch, 64);
  EXPECT_EQ(cuda.max_batch_tokens, 4096);
  EXPECT_EQ(with_defaults({.max_batch = 5000}, {}).max_batch_tokens, 5000);
  EXPECT_EQ(with_defaults({.max_batch = 2, .max_batch_tokens = 64}, {}).max_batch_tokens, 64);
}

}  // namespace
}  // namespace saccade
