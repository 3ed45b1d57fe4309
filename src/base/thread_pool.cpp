#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "base/check.h"

namespace saccade {
namespace {

// Long enough to bridge the serial gaps inside a decode step, short enough to leave an idle machine idle.
constexpr auto kSpin = std::chrono::microseconds(200);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until ready() or the spin budget is over; returns ready().
template <class Ready>
bool spin_until(Ready ready) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    pause();
  }
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  while (std::chrono::steady_clock::now() < deadline) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  }
  return ready();
}

}  // namespace

int available_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    cores = std::min(cores, std::max(1, static_cast<int>(std::lround(std::stod(quota) / period))));
  }
  return std::max(1, cores);
}

ThreadPool::ThreadPool(int threads) : size_(threads > 0 ? threads : available_cores()) {
  threads_.reserve(static_cast<size_t>(size_ - 1));
  for (int worker = 1; worker < size_; ++worker) threads_.emplace_back([this, worker] { work(worker); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run_job(Job job) {
  if (size_ == 1) {
    job.call(job.context, 0);
    return;
  }
  CHECK(pending_.load(std::memory_order_relaxed) == 0, "ThreadPool::run is not reentrant");
  job_ = job;
  pending_.store(size_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1);  // publishes job_; sequentially consistent with sleepers_ so that no wake-up is lost
  if (sleepers_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  job.call(job.context, 0);
  while (!spin_until([&] { return pending_.load(std::memory_order_acquire) == 0; })) std::this_thread::yield();
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  for (;;) {
    const auto ready = [&] { return generation_.load() != seen || stop_.load(std::memory_order_relaxed); };
    if (!spin_until(ready)) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, ready);
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = generation_.load();
    job_.call(job_.context, worker);
    pending_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace saccade
