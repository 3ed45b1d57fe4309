// Fork-join pool for kernels: one job at a time, workers spin briefly between jobs so that a decode step's
// hundreds of small jobs do not pay a wake-up each.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace saccade {

// Cores this process may run on (affinity and cgroup quota counted).
int available_cores();

class ThreadPool {
 public:
  // `threads` workers in all, the calling thread included; 0 means available_cores().
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls fn(worker) once for each worker in [0, size()), in parallel; returns when all are done.
  // fn must not throw and must not call run() of the same pool.
  template <class Fn>
  void run(Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    run_job({[](void* context, int worker) { (*static_cast<F*>(context))(worker); },
             const_cast<void*>(static_cast<const void*>(&fn))});
  }

  // Splits [0, count) into chunks of at most `grain`, taken by whichever worker is free: fn(begin, end).
  template <class Fn>
  void parallel_for(int64_t count, int64_t grain, Fn&& fn) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    if (size_ == 1 || count <= grain) {
      fn(int64_t{0}, count);
      return;
    }
    std::atomic<int64_t> next{0};
    run([&](int) {
      for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        fn(begin, begin + grain < count ? begin + grain : count);
      }
    });
  }

 private:
  struct Job {
    void (*call)(void*, int) = nullptr;
    void* context = nullptr;
  };
  void run_job(Job job);
  void work(int worker);

  int size_ = 1;
  std::vector<std::thread> threads_;
  Job job_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace saccade
