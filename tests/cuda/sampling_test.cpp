#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "cuda/cuda_test.h"

namespace saccade {
namespace {

using cuda::SampleRow;

double uniform(uint64_t seed, uint64_t position) {  // Philox4x32-10: key seed, counter position
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x[0], p1 = uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
  }
  return static_cast<double>((uint64_t{x[0]} << 32 | x[1]) >> 11) * 0x1p-53;
}

// What engine/sampler.h says, by sorting: weights of the ids that may be drawn, 0 for all others.
std::vector<double> weights_of(std::vector<float> x, const SampleRow& row, const std::vector<bool>& seen) {
  const auto v = static_cast<int32_t>(x.size());
  for (int32_t i = 0; i < v; ++i)
    if (row.seen_row >= 0 && seen[i]) x[i] = x[i] < 0 ? x[i] * row.repetition_penalty : x[i] / row.repetition_penalty;
  std::vector<int32_t> ranked(x.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
  const float max = x[ranked[0]];
  std::vector<double> w(x.size());
  if (row.temperature == 0) {
    w[ranked[0]] = 1;
    return w;
  }
  const float least = row.top_k > 0 && row.top_k < v ? x[ranked[row.top_k - 1]] : -INFINITY;
  double mass = 0, before = 0;
  for (const int32_t i : ranked)
    if (x[i] >= least) mass += w[i] = std::exp((static_cast<double>(x[i]) - max) / row.temperature);
  for (const int32_t i : ranked) {
    const double each = w[i];
    if (row.top_p < 1 && before >= row.top_p * mass) w[i] = 0;
    before += each;
    if (each < row.min_p) w[i] = 0;
  }
  return w;
}

class SamplingTest : public CudaTest {
 protected:
  DeviceMemory memory;
  std::mt19937 rng{11};
  Tensor none;

  // logits: R rows of V, or one for all of them.
  std::vector<int32_t> sample(const std::vector<float>& logits, const std::vector<SampleRow>& rows,
                              const Tensor& seen = {}, bool all_greedy = false) {
    const auto r = static_cast<int64_t>(rows.size()), v = static_cast<int64_t>(logits.size()) / r;
    const Tensor x = memory.upload(DType::kF32, {r, v}, logits.data());
    const Tensor params = memory.upload(DType::kU8, {r * static_cast<int64_t>(sizeof(SampleRow))}, rows.data());
    const Tensor ids = memory.poison(DType::kI32, {r}), ids_for_host = memory.poison(DType::kI32, {r});
    const Tensor workspace = memory.poison(DType::kU8, {static_cast<int64_t>(cuda::sample_workspace_bytes(r, v))});
    cuda::sample(nullptr, x, static_cast<const SampleRow*>(params.data), seen, all_greedy, workspace, ids,
                 ids_for_host);
    EXPECT_EQ(download<int32_t>(ids), download<int32_t>(ids_for_host));
    return download<int32_t>(ids);
  }
  float normal(float sigma) { return std::normal_distribution<float>(0, sigma)(rng); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[rng() % values.size()];
  }
  static std::vector<float> repeated(const std::vector<float>& row, size_t times) {
    std::vector<float> all;
    for (size_t i = 0; i < times; ++i) all.insert(all.end(), row.begin(), row.end());
    return all;
  }

  std::vector<float> make_logits(const std::string& kind, size_t v) {
    std::vector<float> x(v);
    for (auto& each : x) {
      if (kind == "floats" || kind == "masked" || kind == "outliers") each = normal(3);
      if (kind == "bf16" || kind == "peaked") each = float(BFloat16(normal(2.5)));
      if (kind == "coarse") each = std::round(normal(1.5)) - 3;
      if (kind == "equal") each = -2.5;
      if (kind == "zeros") each = rng() % 2 ? 0.0F : -0.0F;
    }
    for (size_t i = 0; i < v; ++i) {
      if (kind == "masked" && rng() % 4) x[i] = -INFINITY;
      if (kind == "outliers" && rng() % 8 == 0) x[i] = one_of({-1e30F, -3e38F, 1e-38F});
    }
    if (kind == "masked") x[v / 2] = 1;
    if (kind == "peaked")
      for (int i = 0; i < 40; ++i) x[rng() % v] = float(BFloat16(12 + normal(3)));
    return x;
  }
};

TEST_F(SamplingTest, DrawsWhatTheDefinitionDraws) {
  size_t drawn = 0, at_borders = 0;
  for (const size_t v : {1, 33, 800, 9001, 151936})
    for (const char* kind : {"floats", "bf16", "peaked", "coarse", "equal", "zeros", "masked", "outliers"}) {
      const size_t count = v > 100000 ? 12 : 48, words = (v + 31) / 32;
      std::vector<float> logits;
      std::vector<SampleRow> rows(count);
      std::vector<std::vector<bool>> seen(count, std::vector<bool>(v));
      std::vector<uint32_t> bits(count * words);
      for (size_t r = 0; r < count; ++r) {
        const std::vector<float> row = make_logits(kind, v);
        logits.insert(logits.end(), row.begin(), row.end());
        rows[r] = {.temperature = one_of({0.0F, 0.3F, 1.0F, 1.0F, 2.5F, 1e-6F, 100.0F}),
                   .top_p = one_of({1.0F, 1.0F, 0.9F, 0.5F, 1e-6F, 0.999999F}),
                   .min_p = one_of({0.0F, 0.0F, 0.05F, 1.0F}),
                   .repetition_penalty = one_of({1.0F, 1.3F, 0.7F}),
                   .top_k = one_of({0, 0, 1, 5, 50, 1000, static_cast<int32_t>(v) - 1}),
                   .seen_row = -1,
                   .seed = uint64_t{rng()} << 32 | rng(),
                   .position = rng() % 4000};
        if (rows[r].repetition_penalty != 1 || r % 5 == 0) rows[r].seen_row = static_cast<int32_t>(count - 1 - r);
        for (size_t i = 0; i < v; ++i)
          if (seen[r][i] = rng() % 16 == 0; seen[r][i]) bits[(count - 1 - r) * words + i / 32] |= 1U << i % 32;
      }
      const Tensor seen_bits =
          memory.upload(DType::kI32, {static_cast<int64_t>(count), static_cast<int64_t>(words)}, bits.data());
      const auto got = sample(logits, rows, seen_bits);
      const auto got_bits = download<uint32_t>(seen_bits);
      for (size_t r = 0; r < count; ++r) {
        const SampleRow& p = rows[r];
        SCOPED_TRACE(fmt::format("{} V {} row {}: T {} k {} p {} min {} penalty {}", kind, v, r, p.temperature, p.top_k,
                                 p.top_p, p.min_p, p.repetition_penalty));
        const std::vector<double> w = weights_of({logits.begin() + r * v, logits.begin() + (r + 1) * v}, p, seen[r]);
        const double target = uniform(p.seed, p.position) * std::accumulate(w.begin(), w.end(), 0.0);
        ASSERT_GE(got[r], 0);
        ASSERT_LT(got[r], static_cast<int32_t>(v));
        EXPECT_GT(w[got[r]], 0);
        // The draw may lie this close to a border and fall on its other side.
        const double before = std::accumulate(w.begin(), w.begin() + got[r], 0.0), slack = 1e-9 * before + 1e-9;
        EXPECT_LE(before, target + slack);
        EXPECT_GE(before + w[got[r]], target - slack);
        at_borders += p.temperature > 0 && (before > target || before + w[got[r]] <= target);
        ++drawn;
        if (p.seen_row >= 0) seen[r][got[r]] = true;
        for (size_t i = 0; i < v; ++i)
          ASSERT_EQ(got_bits[(count - 1 - r) * words + i / 32] >> i % 32 & 1, seen[r][i]) << "seen " << i;
      }
    }
  EXPECT_LE(at_borders, drawn / 1000);
}

TEST_F(SamplingTest, GreedyTakesTheLowestOfEquals) {
  for (const size_t v : {1, 31, 800, 50001, 151936}) {
    const std::vector<float> logits = make_logits("coarse", 3 * v);
    for (const bool all_greedy : {false, true}) {
      const auto got = sample(logits, std::vector<SampleRow>(3), none, all_greedy);
      for (size_t r = 0; r < 3; ++r) {
        const auto begin = logits.begin() + r * v;
        EXPECT_EQ(got[r], std::max_element(begin, begin + v) - begin) << v;
      }
    }
  }
}

TEST_F(SamplingTest, ARowDoesNotDependOnTheOthers) {
  const size_t v = 30011, count = 70;
  std::vector<float> logits;
  std::vector<SampleRow> rows(count);
  for (size_t r = 0; r < count; ++r) {
    const auto row = make_logits(r % 2 ? "floats" : "bf16", v);
    logits.insert(logits.end(), row.begin(), row.end());
    rows[r] = {.temperature = 2, .top_p = r % 3 ? 0.95F : 1.0F, .top_k = r % 4 ? 0 : 200, .seed = r, .position = 5};
  }
  const auto together = sample(logits, rows);
  for (const size_t r : {size_t{0}, size_t{1}, size_t{3}, size_t{42}, count - 1})
    EXPECT_EQ(together[r], sample({logits.begin() + r * v, logits.begin() + (r + 1) * v}, {rows[r]})[0]) << r;
}

TEST_F(SamplingTest, LogitsThatAreNotFinite) {
  const size_t v = 1000, count = 6;
  std::vector<float> logits = repeated(make_logits("floats", v), count);
  logits[0 * v + 999] = NAN;
  logits[1 * v + 500] = INFINITY;
  std::fill_n(logits.begin() + 2 * v, v, -INFINITY);
  logits[3 * v] = -NAN;
  logits[4 * v + 77] = -INFINITY;
  for (const float temperature : {0.0F, 1.0F}) {
    std::vector<SampleRow> rows(count, SampleRow{.temperature = temperature, .top_p = 0.9F, .top_k = 40});
    for (size_t r = 0; r < count; ++r) rows[r].seen_row = static_cast<int32_t>(r);
    const Tensor seen = memory.zeros(DType::kI32, {count, (v + 31) / 32});
    const auto got = sample(logits, rows, seen, temperature == 0);
    const auto bits = download<uint32_t>(seen);
    for (size_t r = 0; r < count; ++r) {
      const bool bad = r < 4;
      EXPECT_EQ(got[r] == -1, bad) << r;
      int added = 0;
      for (size_t i = 0; i < v; ++i) added += bits[r * 32 + i / 32] >> i % 32 & 1;
      EXPECT_EQ(added, bad ? 0 : 1) << r;
    }
  }
}

// Pearson's statistic over many (seed, position) against its value that chance exceeds once in a million.
TEST_F(SamplingTest, DrawsFollowTheDistribution) {
  const size_t v = 801, count = 20000;
  for (const SampleRow& p :
       {SampleRow{.temperature = 1}, SampleRow{.temperature = 0.7F, .top_p = 0.9F},
        SampleRow{.temperature = 1.5F, .top_k = 50}, SampleRow{.temperature = 2, .min_p = 0.02F}}) {
    const std::vector<float> row = make_logits("bf16", v);
    std::vector<SampleRow> rows(count, p);
    for (size_t r = 0; r < count; ++r) {
      rows[r].seed = r / 100;
      rows[r].position = 300 + r % 100;
    }
    const auto got = sample(repeated(row, count), rows);
    const std::vector<double> w = weights_of(row, p, {});
    const double mass = std::accumulate(w.begin(), w.end(), 0.0);
    std::vector<int> found(v);
    for (const int32_t id : got) ++found[id];
    double statistic = 0, expected = 0, observed = 0;
    int freedom = -1;
    for (size_t i = 0; i < v; ++i) {
      expected += w[i] / mass * static_cast<double>(count);
      observed += found[i];
      if (expected < 8 && i + 1 < v) continue;  // joined with those that follow
      if (expected > 0) {
        statistic += (observed - expected) * (observed - expected) / expected;
        ++freedom;
      }
      expected = observed = 0;
    }
    // Wilson and Hilferty: the cube root of chi-square / k is nearly normal.
    const double k = freedom, root = 1 - 2 / (9 * k) + 4.753 * std::sqrt(2 / (9 * k));
    EXPECT_LT(statistic, k * root * root * root) << p.temperature << " with " << freedom << " degrees of freedom";
  }
}

}  // namespace
}  // namespace saccade
