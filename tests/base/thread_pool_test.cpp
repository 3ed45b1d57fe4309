#include "base/thread_pool.h"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

namespace saccade {
namespace {

class ThreadPoolOf : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolOf, RunCallsEachWorkerOnce) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.size(), GetParam());
  std::vector<int> calls(static_cast<size_t>(pool.size()), 0);  // not atomic: each worker owns its place
  pool.run([&](int worker) { ++calls.at(static_cast<size_t>(worker)); });
  EXPECT_THAT(calls, testing::Each(1));
}

TEST_P(ThreadPoolOf, ParallelForVisitsEachIndexOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const int64_t grain : {-1, 0, 1, 2, 3, 64, 999, 1000, 5000}) {
      std::vector<int> visits(static_cast<size_t>(count), 0);
      std::atomic<bool> chunks_fit = true;
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        if (begin < 0 || begin >= end || end > count || end - begin > std::max<int64_t>(grain, 1)) chunks_fit = false;
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      EXPECT_THAT(visits, testing::Each(1)) << "count " << count << ", grain " << grain;
      if (GetParam() > 1) {
        EXPECT_TRUE(chunks_fit) << "count " << count << ", grain " << grain;
      }
    }
  }
}

TEST_P(ThreadPoolOf, WritesOfOneJobAreSeenByTheNext) {
  ThreadPool pool(GetParam());
  constexpr int64_t kCount = 64;
  std::vector<int64_t> values(kCount, 0);
  // Plain memory handed from job to job, each index by whichever worker comes: TSan checks the ordering.
  for (int job = 0; job < 500; ++job) {
    pool.parallel_for(kCount, 1 + job % 5, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += 1 + job % 3;
    });
  }
  int64_t each = 0;
  for (int job = 0; job < 500; ++job) each += 1 + job % 3;
  EXPECT_THAT(values, testing::Each(each));
}

TEST_P(ThreadPoolOf, SleepingWorkersWakeUp) {
  ThreadPool pool(GetParam());
  for (int job = 0; job < 50; ++job) {
    // On both sides of the time that workers spin, so that some are just falling asleep when the job comes.
    std::this_thread::sleep_for(std::chrono::microseconds(job * 20));
    std::atomic<int> calls = 0;
    pool.run([&](int) { ++calls; });
    EXPECT_EQ(calls, pool.size());
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolOf, testing::Values(1, 2, 3, 4));

TEST(ThreadPool, DefaultsToTheCoresOfThisProcess) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_EQ(ThreadPool().size(), available_cores());
}

TEST(ThreadPool, ManyPoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool used(3);
    const ThreadPool unused(2);
    std::atomic<int> calls = 0;
    used.run([&](int) { ++calls; });
    EXPECT_EQ(calls, 3);
  }
}

TEST(ThreadPool, PoolsOfDifferentThreadsAreIndependent) {
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      ThreadPool pool(2);
      for (int job = 0; job < 200; ++job) {
        pool.parallel_for(10, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(sum, 3 * 200 * 10);
}

}  // namespace
}  // namespace saccade
