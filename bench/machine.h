// What this machine can do at best, measured: the bounds that kernels are held against.
#pragma once

#include <chrono>
#include <cstddef>

#include "base/thread_pool.h"

namespace saccade::bench {

template <class Fn>
double seconds(Fn fn) {
  const auto begin = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Seconds of one read of `bytes` at `data` by all workers together, each its own contiguous share.
double read_seconds(ThreadPool& pool, const std::byte* data, size_t bytes);

struct Peak {
  const char* instruction;
  double bf16_flops, f32_flops;  // per second, all workers, from registers
};
Peak compute_peak(ThreadPool& pool, bool tiles);  // tiles: AMX is there and granted

}  // namespace saccade::bench
