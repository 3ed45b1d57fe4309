#include "tensor/arena.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"

namespace saccade {
namespace {

bool aligned(const void* p, uintptr_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

TEST(Buffer, IsAlignedAndWritableToItsLastByte) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4097}, (size_t{2} << 20) + 1}) {
    const Buffer buffer(bytes);
    EXPECT_EQ(buffer.size(), bytes);
    EXPECT_TRUE(aligned(buffer.data(), 64));
    std::memset(buffer.data(), 0xab, bytes);  // ASan knows the borders
  }
}

TEST(Buffer, EmptyOwnsNothing) {
  EXPECT_EQ(Buffer().data(), nullptr);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

TEST(Buffer, MovesItsMemory) {
  Buffer a(100);
  std::byte* const p = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), p);
  Buffer c(5);
  c = std::move(b);
  EXPECT_EQ(c.data(), p);
  EXPECT_EQ(c.size(), 100u);
}

TEST(Arena, AllocationsAreAlignedAndDoNotOverlap) {
  Arena arena(4096);
  std::vector<std::pair<unsigned char*, size_t>> places;
  for (size_t i = 0; i < 200; ++i) {
    const size_t bytes = i * 37 % 700;  // some need a block of their own, one is empty
    auto* const p = static_cast<unsigned char*>(arena.allocate(bytes));
    ASSERT_TRUE(aligned(p, 64));
    std::memset(p, static_cast<int>(i), bytes);
    places.emplace_back(p, bytes);
  }
  for (size_t i = 0; i < places.size(); ++i) {
    for (size_t j = 0; j < places[i].second; ++j) ASSERT_EQ(places[i].first[j], static_cast<unsigned char>(i)) << i;
  }
}

TEST(Arena, EmptyAllocationsHaveAddressesOfTheirOwn) {
  Arena arena;
  EXPECT_NE(arena.allocate(0), arena.allocate(0));
}

TEST(Arena, LargerThanABlockGetsABlock) {
  Arena arena(1024);
  EXPECT_NE(arena.allocate(10), nullptr);
  std::memset(arena.allocate(100000), 1, 100000);
  EXPECT_GE(arena.reserved_bytes(), 101024u);
}

TEST(Arena, TheSameStepGetsTheSameAddressesAndNoNewMemory) {
  Arena arena(1000);
  const auto step = [&] {
    std::vector<void*> addresses;
    for (const size_t bytes : {100u, 900u, 3000u, 64u, 500u}) addresses.push_back(arena.allocate(bytes));
    return addresses;
  };
  const auto first = step();
  const size_t reserved = arena.reserved_bytes();
  for (int i = 0; i < 3; ++i) {
    arena.reset();
    EXPECT_EQ(step(), first);
    EXPECT_EQ(arena.reserved_bytes(), reserved);
  }
}

TEST(Arena, ScopeGivesBackWhatItsLifeAllocated) {
  Arena arena(256);
  void* const kept = arena.allocate(64);
  void* inner = nullptr;
  {
    const auto scope = arena.scope();
    inner = arena.allocate(64);
    {
      const auto nested = arena.scope();
      arena.allocate(5000);  // over the block's end
    }
    EXPECT_NE(arena.allocate(64), inner);
  }
  EXPECT_EQ(arena.allocate(64), inner);
  EXPECT_NE(kept, inner);
}

TEST(Arena, TensorsHaveTheirShape) {
  Arena arena;
  const Tensor t = arena.tensor(DType::kBF16, {3, 5});
  EXPECT_EQ(t.describe(), "BF16[3, 5]");
  EXPECT_TRUE(t.contiguous());
  const Tensor next = arena.tensor(DType::kF32, {1});
  EXPECT_GE(static_cast<std::byte*>(next.data) - static_cast<std::byte*>(t.data), 30);
}

TEST(Arena, ExhaustedMemoryIsAnErrorAndNotACrash) {
  EXPECT_THROW(Buffer(size_t{1} << 60), Error);
  EXPECT_THROW(Buffer(SIZE_MAX), Error);
  Arena arena;
  EXPECT_THROW(arena.allocate(SIZE_MAX), Error);
}

}  // namespace
}  // namespace saccade
