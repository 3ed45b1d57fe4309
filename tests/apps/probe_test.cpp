#include <gtest/gtest.h>

#include "machine_probe.h"

namespace saccade::apps {
namespace {

TEST(MachineProbe, MeasuresSomethingPlausible) {
  ThreadPool pool(2);
  const double bandwidth = measure_read_bandwidth(pool, 0.0, size_t{16} << 20);
  EXPECT_GT(bandwidth, 1e7);
  EXPECT_LT(bandwidth, 1e14);
  const Peak bf16 = measure_bf16_peak(pool, 0.0), f32 = measure_f32_peak(pool, 0.0);
  EXPECT_GT(f32.flops, 1e7);
  EXPECT_LT(bf16.flops, 1e15);
  EXPECT_FALSE(bf16.instruction.empty());
}

TEST(MachineProbe, Bf16UsesWhatTheProcessorHas) {
  ThreadPool pool(1);
  bool amx = false, avx512_bf16 = false;
  for (const auto& feature : cpu_features()) {
    if (std::string(feature.name) == "amx-bf16") amx = feature.present;
    if (std::string(feature.name) == "avx512bf16") avx512_bf16 = feature.present;
  }
  const std::string expected = amx ? "amx-bf16" : avx512_bf16 ? "avx512-bf16" : measure_f32_peak(pool, 0.0).instruction;
  EXPECT_EQ(measure_bf16_peak(pool, 0.0).instruction, expected);
}

}  // namespace
}  // namespace saccade::apps
