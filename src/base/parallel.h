// A few independent pieces of work on threads of their own, for what happens once a request: decoding its pictures.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace saccade {

// Calls fn(i) for each i < count, on at most `most` threads (the calling one included). What the lowest i throws is
// thrown again when all are done.
template <class Fn>
void parallel_pieces(size_t count, Fn&& fn, size_t most = 16) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  size_t error_at = count;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < error_at) error_at = i, error = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> threads;
  const size_t wanted = count == 0 ? 0 : std::min({count, most, static_cast<size_t>(available_cores())});
  for (size_t t = 1; t < wanted; ++t) threads.emplace_back(work);
  work();
  threads.clear();  // joins
  if (error) std::rethrow_exception(error);
}

}  // namespace saccade
