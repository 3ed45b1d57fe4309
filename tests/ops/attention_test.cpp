#include <numeric>

#include "ops/op_test.h"

namespace saccade {
namespace {

constexpr DType kTypes[] = {DType::kBF16, DType::kF32};

// Softmax attention in double, and how far float may be off.
struct Expected {
  std::vector<double> y;
  double error = 0;
};

Expected attend(const std::vector<double>& q, const std::vector<std::vector<double>>& keys,
                const std::vector<std::vector<double>>& values, float scale) {
  const auto dim = static_cast<int64_t>(q.size()), n = static_cast<int64_t>(keys.size());
  Expected e{std::vector<double>(q.size())};
  std::vector<double> scores(keys.size());
  const auto key = [&](int64_t j) { return keys[static_cast<size_t>(j)].data(); };
  const auto value = [&](int64_t j) { return values[static_cast<size_t>(j)].data(); };
  ref::attend(q.data(), key, value, n, dim, dim, scale, scores.data(), e.y.data());
  // A score is off by about eps times the sum of its terms' sizes, a probability relatively by twice that and by the
  // rounding of exp's argument; the weighted values, a convex mean, by as much of the largest value, and by the
  // rounding of n additions.
  double size = 0, largest = 0;
  for (int64_t j = 0; j < n; ++j) {
    double terms = 0;
    for (size_t d = 0; d < q.size(); ++d) {
      terms += std::abs(q[d] * keys[static_cast<size_t>(j)][d]);
      largest = std::max(largest, std::abs(values[static_cast<size_t>(j)][d]));
    }
    size = std::max(size, terms * static_cast<double>(scale));
  }
  const double score_error = kEpsFloat * (4 * std::sqrt(static_cast<double>(dim)) + 8) * size;
  e.error = largest * (2 * score_error + kEpsFloat * (size + 4 * std::sqrt(static_cast<double>(n)) + 16));
  return e;
}

class AttentionTest : public OpTest {
 protected:
  static std::vector<double> row(const Tensor& t, int64_t offset, int64_t dim) {
    std::vector<double> values;
    for (int64_t i = 0; i < dim; ++i) values.push_back(at(t, offset + i));
    return values;
  }
  static void expect_row(const Tensor& y, int64_t offset, const Expected& e) {
    for (size_t d = 0; d < e.y.size(); ++d) {
      ASSERT_NEAR(at(y, offset + static_cast<int64_t>(d)), e.y[d], e.error + eps_of(y.dtype) * std::abs(e.y[d]))
          << "channel " << d;
    }
  }
};

// A cache of several sequences in shuffled pages; all that no sequence owns is NaN.
struct Cache {
  int64_t kv_heads, dim;
  std::vector<int64_t> lens;
  std::vector<std::vector<int32_t>> pages;  // of each sequence
  Tensor layer;

  Cache(Guarded& memory, DType dtype, int64_t kv, int64_t dh, std::vector<int64_t> sizes)
      : kv_heads(kv), dim(dh), lens(std::move(sizes)) {
    int64_t count = 2;  // one unused page at least on either side
    for (const int64_t len : lens) count += (len + kPageTokens - 1) / kPageTokens;
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), memory.rng());
    layer = memory.poison(dtype, {count, 2, kv_heads, kPageTokens, dim});
    size_t next = 0;
    std::normal_distribution<float> value(0, 1);
    for (const int64_t len : lens) {
      auto& mine = pages.emplace_back();
      for (int64_t t = 0; t < len; ++t) {
        if (t % kPageTokens == 0) mine.push_back(order[next++]);
        for (int64_t part = 0; part < 2; ++part) {
          for (int64_t h = 0; h < kv_heads; ++h) {
            const int64_t at = offset(pages.size() - 1, part, h, t);
            for (int64_t d = 0; d < dim; ++d) Guarded::set(layer, at + d, value(memory.rng()));
          }
        }
      }
    }
  }

  int64_t offset(size_t b, int64_t part, int64_t h, int64_t t) const {
    const int64_t page = pages[b][static_cast<size_t>(t / kPageTokens)];
    return (((page * 2 + part) * kv_heads + h) * kPageTokens + t % kPageTokens) * dim;
  }

  PagedKv step(Guarded& memory, const std::vector<size_t>& sequences, const std::vector<int64_t>& rows,
               const std::vector<int64_t>& ends) const {
    return step_of(memory, pages, sequences, rows, ends);
  }
};

TEST_P(AttentionTest, PagedMatchesDouble) {
  struct Case {
    int64_t heads, kv_heads, dim;
    std::vector<int64_t> lens, rows;
  };
  const std::vector<Case> cases = {{4, 2, 16, {1}, {1}},
                                   {6, 2, 32, {5, 64, 65}, {5, 1, 3}},
                                   {2, 1, 80, {200, 130}, {70, 130}},
                                   {16, 2, 128, {1100, 513}, {1, 2}},
                                   {3, 3, 64, {577}, {33}},
                                   {7, 1, 20, {40}, {40}},
                                   {130, 1, 8, {70}, {3}}};
  int threads = 0;
  for (const DType dtype : kTypes) {
    for (const Case& c : cases) {
      SCOPED_TRACE(
          fmt::format("{} H {} K {} Dh {} first length {}", dtype_name(dtype), c.heads, c.kv_heads, c.dim, c.lens[0]));
      const Cache cache(memory, dtype, c.kv_heads, c.dim, c.lens);
      std::vector<size_t> all(c.lens.size());
      std::iota(all.begin(), all.end(), size_t{0});
      // The last sequence's step ends one token early where it can: what follows is in the cache but not visible.
      std::vector<int64_t> ends = c.lens;
      if (ends.back() > c.rows.back()) --ends.back();
      const PagedKv kv = cache.step(memory, all, c.rows, ends);
      const int64_t t = std::accumulate(c.rows.begin(), c.rows.end(), int64_t{0});
      const Tensor q = memory.normal(dtype, {t, c.heads, c.dim});
      const float scale = 1 / std::sqrt(static_cast<float>(c.dim));
      threads = threads % 3 + 1;
      const Tensor y = ops::paged_attention(ctx(threads), q, cache.layer, kv, scale);
      int64_t out = 0;
      for (size_t b = 0; b < all.size(); ++b) {
        for (int64_t r = 0; r < c.rows[b]; ++r, ++out) {
          for (int64_t h = 0; h < c.heads; ++h) {
            SCOPED_TRACE(fmt::format("sequence {} row {} head {}", b, r, h));
            std::vector<std::vector<double>> keys, values;
            for (int64_t j = 0; j <= ends[b] - c.rows[b] + r; ++j) {
              const int64_t kv_head = h / (c.heads / c.kv_heads);
              keys.push_back(row(cache.layer, cache.offset(b, 0, kv_head, j), c.dim));
              values.push_back(row(cache.layer, cache.offset(b, 1, kv_head, j), c.dim));
            }
            const int64_t offset = (out * c.heads + h) * c.dim;
            expect_row(y, offset, attend(row(q, offset, c.dim), keys, values, scale));
            if (HasFailure()) return;
          }
        }
      }
      arena.reset();
    }
  }
}

TEST_P(AttentionTest, PagedChunksAndBatchesDoNotMatter) {
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {16, 80, 128}) {
      SCOPED_TRACE(fmt::format("{} Dh {}", dtype_name(dtype), dim));
      const int64_t heads = 8, length = 1200, rows = 150, before = length - rows;
      const Cache cache(memory, dtype, 2, dim, {length, 700, 3});
      const Tensor q = memory.normal(dtype, {rows, heads, dim}), others = memory.normal(dtype, {4, heads, dim});
      const Tensor whole =
          ops::paged_attention(ctx(1), q, cache.layer, cache.step(memory, {0}, {rows}, {length}), 0.1F);
      const std::vector<int64_t> cuts = {0, 1, 2, 5, 21, 100, 149, 150};
      for (size_t c = 1; c < cuts.size(); ++c) {
        // Alone, with all the threads there are.
        const int64_t n = cuts[c] - cuts[c - 1], end = before + cuts[c];
        const Tensor part = q.slice(cuts[c - 1], cuts[c]), expected = whole.slice(cuts[c - 1], cuts[c]);
        const PagedKv alone = cache.step(memory, {0}, {n}, {end});
        EXPECT_TRUE(same_bits(ops::paged_attention(ctx(3), part, cache.layer, alone, 0.1F), expected)) << cuts[c - 1];
        // Between others.
        const Tensor mixed = memory.poison(dtype, {n + 4, heads, dim});
        std::memcpy(mixed.slice(0, 1).data, others.data, others.bytes() / 4);
        std::memcpy(mixed.slice(1, n + 1).data, part.data, part.bytes());
        std::memcpy(mixed.slice(n + 1, n + 4).data, others.slice(1, 4).data, others.bytes() / 4 * 3);
        const PagedKv between = cache.step(memory, {1, 0, 2}, {1, n, 3}, {700, end, 3});
        const Tensor y = ops::paged_attention(ctx(2), mixed, cache.layer, between, 0.1F);
        EXPECT_TRUE(same_bits(y.slice(1, n + 1), expected)) << cuts[c - 1];
      }
      arena.reset();
    }
  }
}

TEST_P(AttentionTest, SegmentsMatchDouble) {
  int threads = 0;
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {16, 20, 64, 80, 128}) {
      const std::vector<int32_t> ends = {0, 1, 8, 72, 72, 137, 270, 840};
      const int64_t p = ends.back(), heads = 2;
      SCOPED_TRACE(fmt::format("{} Dh {}", dtype_name(dtype), dim));
      const Tensor qkv = memory.normal(dtype, {p, 3, heads, dim});
      const Tensor cu_seqlens = memory.ints(ends, {static_cast<int64_t>(ends.size())});
      threads = threads % 3 + 1;
      const float scale = 1 / std::sqrt(static_cast<float>(dim));
      const Tensor y = ops::segment_attention(ctx(threads), qkv, cu_seqlens, scale);
      for (size_t s = 0; s + 1 < ends.size(); ++s) {
        for (int64_t h = 0; h < heads; ++h) {
          std::vector<std::vector<double>> keys, values;
          for (int64_t j = ends[s]; j < ends[s + 1]; ++j) {
            keys.push_back(row(qkv, ((j * 3 + 1) * heads + h) * dim, dim));
            values.push_back(row(qkv, ((j * 3 + 2) * heads + h) * dim, dim));
          }
          for (int64_t i = ends[s]; i < ends[s + 1]; i += 1 + i % 5) {
            SCOPED_TRACE(fmt::format("row {} head {}", i, h));
            const Expected e = attend(row(qkv, (i * 3 * heads + h) * dim, dim), keys, values, scale);
            expect_row(y, (i * heads + h) * dim, e);
            if (HasFailure()) return;
          }
        }
      }
      arena.reset();
    }
  }
}

// Scores far apart: exp must neither overflow nor lose the winner.
TEST_P(AttentionTest, LargeScores) {
  for (const DType dtype : kTypes) {
    const int64_t p = 700, dim = 32;
    const Tensor qkv = memory.normal(dtype, {p, 3, 1, dim}, 12);
    const Tensor y = ops::segment_attention(ctx(2), qkv, memory.ints<int32_t>({0, 700}, {2}), 1);
    for (int64_t i = 0; i < p; i += 41) {
      int64_t best = 0;
      double top = -1e30, second = -1e30;
      for (int64_t j = 0; j < p; ++j) {
        double s = 0;
        for (int64_t d = 0; d < dim; ++d) s += at(qkv, i * 3 * dim + d) * at(qkv, (j * 3 + 1) * dim + d);
        if (s > top) {
          second = top;
          top = s;
          best = j;
        } else {
          second = std::max(second, s);
        }
      }
      if (top - second < 60) continue;
      for (int64_t d = 0; d < dim; ++d) ASSERT_EQ(at(y, i * dim + d), at(qkv, (best * 3 + 2) * dim + d)) << i;
    }
  }
}

INSTANTIATE_FOR_ISAS(AttentionTest);

}  // namespace
}  // namespace saccade
