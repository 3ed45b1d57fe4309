#include "base/parallel.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace saccade {
namespace {

TEST(ParallelPieces, EachPieceOnce) {
  for (const size_t count : {0u, 1u, 2u, 7u, 1000u}) {
    std::vector<std::atomic<int>> calls(count);
    parallel_pieces(count, [&](size_t i) { ++calls[i]; });
    for (const auto& c : calls) EXPECT_EQ(c, 1);
  }
}

TEST(ParallelPieces, TheLowestErrorIsThrownWhenAllAreDone) {
  std::atomic<int> done{0};
  try {
    parallel_pieces(40, [&](size_t i) {
      ++done;
      if (i % 10 == 7) throw std::runtime_error(std::to_string(i));
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "7");
  }
  EXPECT_EQ(done, 40);
}

TEST(ParallelPieces, OneThreadIsTheCallersOwn) {
  const auto caller = std::this_thread::get_id();
  parallel_pieces(
      5, [&](size_t) { EXPECT_EQ(std::this_thread::get_id(), caller); }, 1);
}

}  // namespace
}  // namespace saccade
