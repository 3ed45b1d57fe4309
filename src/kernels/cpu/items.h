// Work in items that threads take in turn.
#pragma once

#include <atomic>

#include "base/thread_pool.h"

namespace saccade::cpu {

// Multiply-adds below which a second thread costs more than it brings.
inline constexpr int64_t kAlone = int64_t{1} << 17;

// fn(worker, item, following) for every item, in any order; on the calling thread when `alone`. A worker knows the item
// that it will take next, or a number beyond all, and can fetch what it needs.
template <class Fn>
void for_items_ahead(ThreadPool& pool, int64_t items, bool alone, Fn&& fn) {
  if (alone || items <= 1 || pool.size() == 1) {
    for (int64_t item = 0; item < items; ++item) fn(0, item, item + 1);
    return;
  }
  std::atomic<int64_t> next{0};
  pool.run([&](int worker) {
    int64_t item = next.fetch_add(1, std::memory_order_relaxed);
    while (item < items) {
      const int64_t following = next.fetch_add(1, std::memory_order_relaxed);
      fn(worker, item, following);
      item = following;
    }
  });
}

// fn(worker, item) for every item, in any order; on the calling thread when `alone`.
template <class Fn>
void for_items(ThreadPool& pool, int64_t items, bool alone, Fn&& fn) {
  if (alone || items <= 1 || pool.size() == 1) {
    for (int64_t item = 0; item < items; ++item) fn(0, item);
    return;
  }
  std::atomic<int64_t> next{0};
  pool.run([&](int worker) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) fn(worker, item);
  });
}

}  // namespace saccade::cpu
