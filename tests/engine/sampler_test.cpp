#include "engine/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"

namespace saccade {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_logits(size_t n, uint32_t seed, float step) {
  std::mt19937 random(seed);
  std::vector<float> x(n);
  for (float& v : x) {
    v = static_cast<float>(random()) * 0x1p-32f * 12 - 6;
    if (step > 0) v = std::round(v / step) * step;  // many ties
  }
  return x;
}

// The definition in sampler.h, by sorting everything.
std::set<int32_t> naive_kept(const std::vector<float>& x, const Sampling& s) {
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](int32_t i) { return static_cast<double>(x[static_cast<size_t>(i)]); };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
  const double max = at(order[0]);
  const auto weight = [&](int32_t i) { return std::exp((at(i) - max) / s.temperature); };

  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < order.size()) {
    const double threshold = at(order[static_cast<size_t>(s.top_k) - 1]);
    std::erase_if(order, [&](int32_t i) { return at(i) < threshold; });
  }
  double mass = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(x.size()); ++i)
    if (std::find(order.begin(), order.end(), i) != order.end()) mass += weight(i);
  std::set<int32_t> kept;
  double before = 0;
  for (const int32_t i : order) {
    if (s.top_p < 1 && before >= static_cast<double>(s.top_p) * mass) break;
    before += weight(i);
    if (weight(i) >= static_cast<double>(s.min_p)) kept.insert(i);
  }
  return kept;
}

TEST(Sampler, KeepsTheSameTokensAsSorting) {
  Sampler sampler;
  int cut = 0;
  for (const size_t vocab : {1, 2, 65, 700, 3000})
    for (const float step : {0.0f, 0.5f, 100.0f})
      for (const int top_k : {0, 1, 5, 100, 5000})
        for (const float top_p : {1e-6f, 0.3f, 0.9f, 0.999f, 1.0f})
          for (const float min_p : {0.0f, 0.1f, 1.0f})
            for (const float temperature : {1e-6f, 0.7f, 100.0f}) {
              const Sampling s{.temperature = temperature, .top_p = top_p, .min_p = min_p, .top_k = top_k};
              const auto x = random_logits(vocab, static_cast<uint32_t>(vocab) + static_cast<uint32_t>(top_k), step);
              std::set<int32_t> kept;
              int32_t last = -1;
              for (const auto& c : sampler.candidates(x, s, TokenSet(0))) {
                EXPECT_LT(last, c.id);
                kept.insert(last = c.id);
              }
              EXPECT_EQ(kept, naive_kept(x, s)) << vocab << " step " << step << " k " << top_k << " p " << top_p
                                                << " min " << min_p << " T " << temperature;
              cut += kept.size() < vocab;
            }
  EXPECT_GT(cut, 300);
}

TEST(Sampler, TiesAtTheBorder) {
  Sampler sampler;
  const std::vector<float> x = {1, 3, 2, 2, 2, 0};
  const auto kept = [&](const Sampling& s) {
    std::vector<int32_t> ids;
    for (const auto& c : sampler.candidates(x, s, TokenSet(0))) ids.push_back(c.id);
    return ids;
  };
  EXPECT_THAT(kept({.temperature = 1, .top_k = 2}), ElementsAre(1, 2, 3, 4));  // all tied with the second
  EXPECT_THAT(kept({.temperature = 1, .top_p = 0.5f}), ElementsAre(1, 2));     // the lower id first
}

// Pearson's statistic over `draws` samples against exact probabilities.
double chi_square(const std::vector<float>& x, const Sampling& settings, const std::vector<double>& p, int draws) {
  Sampler sampler;
  std::vector<int> count(x.size());
  for (int i = 0; i < draws; ++i)
    ++count[static_cast<size_t>(sampler.sample(x, settings, TokenSet(0), static_cast<uint64_t>(i)))];
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (p[i] == 0) {
      EXPECT_EQ(count[i], 0) << i;
      continue;
    }
    const double expected = p[i] * draws;
    sum += (count[i] - expected) * (count[i] - expected) / expected;
  }
  return sum;
}

TEST(Sampler, DrawsFromTheExactDistribution) {
  const std::vector<float> x = {0.5f, 2.0f, 1.0f, -1.0f, 1.5f, 0.0f, 2.0f, -0.5f};
  for (const uint64_t seed : {1u, 2u, 3u, 4u}) {
    const Sampling s{.temperature = 0.8f, .top_k = 6, .seed = seed};
    std::vector<double> p(x.size());
    const auto kept = naive_kept(x, s);
    double sum = 0;
    for (const int32_t i : kept) sum += p[static_cast<size_t>(i)] = std::exp(x[static_cast<size_t>(i)] / 0.8);
    for (double& v : p) v /= sum;
    // 5 degrees of freedom: beyond 20.5 once in a thousand.
    EXPECT_LT(chi_square(x, s, p, 20000), 20.5) << seed;
    // The test has teeth: a slightly different temperature is noticed.
    EXPECT_GT(chi_square(x, {.temperature = 1.0f, .top_k = 6, .seed = seed}, p, 20000), 20.5);
  }
}

TEST(Sampler, UniformIsPhilox) {
  // Random123's known answers: counter and key 0 give 6627e8d5 e169c58d ...
  EXPECT_EQ(uniform(0, 0), static_cast<double>(0x6627e8d5e169c58du >> 11) * 0x1p-53);
  EXPECT_NE(uniform(0, 1), uniform(1, 0));
  EXPECT_NE(uniform(uint64_t{1} << 32, 0), uniform(0, 0));
  EXPECT_NE(uniform(0, uint64_t{1} << 32), uniform(0, 0));
}

TEST(Sampler, GreedyTakesTheLowestIdOfEquals) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 4, 2, 4}, {}, TokenSet(4), 0), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInfinity, -kInfinity, -3}, {}, TokenSet(3), 0), 2);
}

TEST(Sampler, PenaltyCountsEachIdOnce) {
  Sampler sampler;
  TokenSet seen(4);
  for (const int32_t id : {0, 2, 0, 2, 2, 99, -1}) seen.add(id);  // ids beyond the vocabulary are ignored
  EXPECT_THAT(std::vector(seen.ids().begin(), seen.ids().end()), ElementsAre(0, 2));
  const std::vector<float> x = {4, 3, -1, -1.5f};
  std::vector<float> penalised;
  for (const auto& c : sampler.candidates(x, {.temperature = 1, .repetition_penalty = 2}, seen))
    penalised.push_back(c.x);
  EXPECT_THAT(penalised, ElementsAre(2, 3, -2, -1.5f));  // divided above 0, multiplied below
  EXPECT_EQ(sampler.sample(x, {.repetition_penalty = 2}, seen, 0), 1);
  EXPECT_EQ(sampler.sample(x, {}, seen, 0), 0);
}

TEST(Sampler, RefusesLogitsThatAreNotFinite) {
  Sampler sampler;
  for (const float temperature : {0.0f, 1.0f}) {
    const Sampling s{.temperature = temperature};
    EXPECT_THROW(sampler.sample(std::vector<float>{1, kNan}, s, TokenSet(2), 0), Error);
    EXPECT_THROW(sampler.sample(std::vector<float>{1, kInfinity}, s, TokenSet(2), 0), Error);
    EXPECT_THROW(sampler.sample(std::vector<float>{-kInfinity, -kInfinity}, s, TokenSet(2), 0), Error);
  }
}

TEST(Sampler, DrawsNothingOfProbabilityZero) {
  Sampler sampler;
  const std::vector<float> x = {-kInfinity, 0, -kInfinity, 0};
  for (uint64_t i = 0; i < 200; ++i) EXPECT_EQ(sampler.sample(x, {.temperature = 1}, TokenSet(4), i) % 2, 1);
}

TEST(TokenLogprob, IsLogSoftmaxWithTheBestFirst) {
  const std::vector<float> x = {1, 2, 3, 2};
  const double log_sum = std::log(std::exp(1.0) + 2 * std::exp(2.0) + std::exp(3.0));
  const TokenLogprob p = token_logprob(x, 0, 3);
  EXPECT_EQ(p.id, 0);
  EXPECT_NEAR(p.logprob, 1 - log_sum, 1e-6);
  ASSERT_EQ(p.top.size(), 3u);
  EXPECT_EQ(p.top[0].first, 2);
  EXPECT_EQ(p.top[1].first, 1);
  EXPECT_EQ(p.top[2].first, 3);
  EXPECT_NEAR(p.top[2].second, 2 - log_sum, 1e-6);
  EXPECT_EQ(token_logprob(x, 1, 20).top.size(), 4u);
}

std::string refusal(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  try {
    resolve_sampling(params, {});
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ResolveSampling, NamesTheField) {
  EXPECT_EQ(refusal([](auto&) {}), "");
  for (const float bad : {-1.0f, 100.5f, kNan, kInfinity})
    EXPECT_THAT(refusal([&](auto& p) { p.temperature = bad; }), HasSubstr("temperature"));
  for (const float bad : {0.0f, -0.5f, 1.5f, kNan})
    EXPECT_THAT(refusal([&](auto& p) { p.top_p = bad; }), HasSubstr("top_p"));
  for (const float bad : {-0.1f, 1.1f, kNan}) EXPECT_THAT(refusal([&](auto& p) { p.min_p = bad; }), HasSubstr("min_p"));
  for (const float bad : {0.0f, -1.0f, kNan, kInfinity})
    EXPECT_THAT(refusal([&](auto& p) { p.repetition_penalty = bad; }), HasSubstr("repetition_penalty"));
  EXPECT_THAT(refusal([](auto& p) { p.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(refusal([](auto& p) { p.max_tokens = 0; }), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal([](auto& p) { p.logprobs = 21; }), HasSubstr("logprobs"));
  EXPECT_THAT(refusal([](auto& p) { p.logprobs = -2; }), HasSubstr("logprobs"));
  EXPECT_THAT(refusal([](auto& p) { p.stop = {""}; }), HasSubstr("stop"));
  EXPECT_THAT(refusal([](auto& p) { p.stop = {std::string(1025, 'x')}; }), HasSubstr("stop"));
  EXPECT_THAT(refusal([](auto& p) { p.stop.assign(17, "x"); }), HasSubstr("stop"));
  for (const char* bad : {"\x80", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"})
    EXPECT_THAT(refusal([&](auto& p) { p.stop = {bad}; }), HasSubstr("UTF-8"));
  EXPECT_EQ(refusal([](auto& p) { p.stop = {"\u00e9\u20ac\U0001F600", std::string(1024, 'x')}; }), "");
}

TEST(ResolveSampling, TakesTheCheckpointsValuesWhereUnset) {
  const GenerationDefaults defaults{
      .eos_ids = {}, .temperature = 0.5f, .top_p = 0.25f, .repetition_penalty = 1.05f, .top_k = 7};
  const Sampling s = resolve_sampling({}, defaults);
  EXPECT_EQ(s.temperature, 0.5f);
  EXPECT_EQ(s.top_p, 0.25f);
  EXPECT_EQ(s.repetition_penalty, 1.05f);
  EXPECT_EQ(s.top_k, 7);
  SamplingParams own;
  own.temperature = 0;
  own.top_k = 0;
  EXPECT_EQ(resolve_sampling(own, defaults).temperature, 0);
  EXPECT_EQ(resolve_sampling(own, defaults).top_k, 0);
}

}  // namespace
}  // namespace saccade
