// What this machine can do at best, measured: the bounds that kernels are held against.
#pragma once

#include <chrono>
#include <cstddef>

#include "base/thread_pool.h"

namespace saccade::bench {

// Best time of `rounds` calls after one to warm up, in seconds.
template <class Fn>
double best_seconds(int rounds, Fn fn) {
  double best = 1e9;
  for (int i = 0; i <= rounds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    fn();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    if (i > 0 && passed.count() < best) best = passed.count();
  }
  return best;
}

// Bytes per second that all workers together read from `bytes` of memory at `data`, each its own contiguous share.
double read_bandwidth(ThreadPool& pool, const std::byte* data, size_t bytes);

struct Peak {
  const char* instruction;
  double bf16_flops, f32_flops;  // per second, all workers, from registers
};
Peak compute_peak(ThreadPool& pool);

}  // namespace saccade::bench
