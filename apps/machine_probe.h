// What this machine can do, measured: the floors that `bench` and `doctor` compare against.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.h"

namespace saccade::apps {

// One pass over `bytes` of memory by all workers together, each its own contiguous share, with wide loads.
// What is left over after shares of whole kilobytes is not read.
void read_memory(ThreadPool& pool, const void* data, size_t bytes);

// Bytes per second that all workers of the pool read together from memory: the best pass over a buffer of `bytes`
// (default 1 GiB, far beyond the caches), wide loads, for about `seconds`.
double measure_read_bandwidth(ThreadPool& pool, double seconds, size_t bytes = size_t{1} << 30);

struct Peak {
  double flops = 0;         // floating-point operations per second (a multiply-add is two) of all workers together
  std::string instruction;  // "amx-bf16", "avx512-bf16", "avx512-fma", "avx2-fma", "scalar"
};

// Loops that touch registers only, best of several passes, for about `seconds`. bf16 products with f32 sums where the
// processor has them, else f32 multiply-adds.
Peak measure_bf16_peak(ThreadPool& pool, double seconds);
Peak measure_f32_peak(ThreadPool& pool, double seconds);

struct CpuFeature {
  const char* name;
  bool present;
};
std::vector<CpuFeature> cpu_features();
std::string cpu_model();  // as /proc/cpuinfo names it

}  // namespace saccade::apps
