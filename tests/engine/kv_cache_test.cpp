#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "base/error.h"

namespace saccade {
namespace {

constexpr KvLayout kLayout{.layers = 3, .values_per_token = 8, .dtype = DType::kBF16};

TEST(KvCache, LayersArePagesOfTheModelsDtype) {
  KvCache cache(kLayout, 5);
  EXPECT_EQ(KvCache::page_bytes(kLayout), 3u * 64 * 8 * 2);
  ASSERT_EQ(cache.layers().size(), 3u);
  for (const Tensor& layer : cache.layers()) EXPECT_EQ(layer.describe(), "BF16[5, 512]");
  EXPECT_NE(cache.layers()[0].data, cache.layers()[1].data);
}

TEST(KvCache, ReservesAllAndTakesAsNeeded) {
  KvCache cache(kLayout, 5);
  auto a = cache.reserve(129);  // 3 pages
  ASSERT_TRUE(a);
  EXPECT_EQ(cache.free_pages(), 2);
  EXPECT_TRUE(a->pages().empty());
  EXPECT_FALSE(cache.reserve(129));
  auto b = cache.reserve(128);
  ASSERT_TRUE(b);
  EXPECT_EQ(cache.free_pages(), 0);

  a->grow(1);
  EXPECT_EQ(a->pages().size(), 1u);
  b->grow(65);
  a->grow(64);
  EXPECT_EQ(a->pages().size(), 1u);
  a->grow(65);
  a->grow(129);
  std::set<int32_t> all(a->pages().begin(), a->pages().end());
  all.insert(b->pages().begin(), b->pages().end());
  EXPECT_EQ(all, (std::set<int32_t>{0, 1, 2, 3, 4}));

  KvCache::Lease moved = std::move(*a);
  a.reset();
  EXPECT_EQ(cache.free_pages(), 0);
  moved.release();
  moved.release();
  EXPECT_EQ(cache.free_pages(), 3);
  b.reset();
  EXPECT_EQ(cache.free_pages(), 5);
  auto c = cache.reserve(5 * 64);
  ASSERT_TRUE(c);
  c->grow(5 * 64);
  EXPECT_EQ((std::set<int32_t>(c->pages().begin(), c->pages().end())), all);
}

TEST(KvCache, RefusesWhatCannotBeAddressed) {
  const KvLayout huge{.layers = 100, .values_per_token = std::numeric_limits<int64_t>::max() / 4};
  EXPECT_FALSE(KvCache::page_bytes(huge));
  EXPECT_THROW(KvCache(huge, 1), Error);
}

}  // namespace
}  // namespace saccade
