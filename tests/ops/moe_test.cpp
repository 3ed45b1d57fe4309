#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "ops/op_test.h"

namespace saccade {
namespace {

using ops::Routes;
using ops::Routing;

struct Types {
  DType x, w;
};
constexpr Types kTypes[] = {{DType::kBF16, DType::kBF16}, {DType::kF32, DType::kBF16}, {DType::kF32, DType::kF32}};
constexpr Types kGateTypes[] = {
    {DType::kBF16, DType::kBF16}, {DType::kBF16, DType::kF32}, {DType::kF32, DType::kBF16}, {DType::kF32, DType::kF32}};

class MoeTest : public OpTest {
 protected:
  // Experts of `parts` parts of n rows, about unit length.
  std::vector<Weight> experts(DType dtype, int64_t count, int parts, int64_t n, int64_t k, bool bias) {
    std::vector<Weight> all;
    for (int64_t e = 0; e < count; ++e) {
      Weight w;
      for (size_t part = 0; part < static_cast<size_t>(parts); ++part, ++w.parts) {
        w.data[part] = memory.normal(dtype, {n, k}, 1 / std::sqrt(static_cast<float>(k)));
        if (bias) w.bias[part] = memory.normal(dtype, {n});
      }
      all.push_back(w);
    }
    return all;
  }

  // Scores x gate^T in double, and a bound for how far float sums are off.
  static std::vector<double> logits(const Tensor& x, const Tensor& gate, int64_t t, double& error) {
    std::vector<double> scores;
    const int64_t d = x.dim(1);
    error = 0;
    for (int64_t e = 0; e < gate.dim(0); ++e) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < d; ++i) {
        const double term = at(x, t * d + i) * at(gate, e * d + i);
        sum += term;
        size += std::abs(term);
      }
      scores.push_back(sum);
      error = std::max(error, kEpsFloat * (4 * std::sqrt(static_cast<double>(d)) + 8) * size);
    }
    return scores;
  }

  // The expert of every choice, best first; checks that places, tokens and offsets tell the same.
  static std::vector<std::vector<int32_t>> chosen(const Routes& r) {
    const int64_t t = r.places.dim(0), k = r.places.dim(1), e = r.offsets.dim(0) - 1;
    const auto *places = r.places.as<int32_t>(), *tokens = r.tokens.as<int32_t>(), *offsets = r.offsets.as<int32_t>();
    EXPECT_EQ(offsets[0], 0);
    EXPECT_EQ(offsets[e], t * k);
    EXPECT_TRUE(std::is_sorted(offsets, offsets + e + 1));
    for (int64_t i = 0; i < e; ++i) {
      EXPECT_TRUE(std::is_sorted(tokens + offsets[i], tokens + offsets[i + 1])) << "expert " << i;
    }
    std::vector<std::vector<int32_t>> experts(static_cast<size_t>(t));
    std::set<int32_t> all;
    for (int64_t i = 0; i < t * k; ++i) {
      EXPECT_TRUE(places[i] >= 0 && places[i] < t * k && all.insert(places[i]).second) << "choice " << i;
      if (::testing::Test::HasFailure()) break;
      EXPECT_EQ(tokens[places[i]], i / k);
      const auto after = std::upper_bound(offsets, offsets + e + 1, places[i]) - offsets;
      experts[static_cast<size_t>(i / k)].push_back(static_cast<int32_t>(after - 1));
    }
    for (const auto& row : experts) EXPECT_EQ(std::set<int32_t>(row.begin(), row.end()).size(), row.size());
    return experts;
  }

  // Routes of the given experts [T][k], with weights 1/2, 1/4, ...
  Routes routes(const std::vector<std::vector<int32_t>>& experts, int64_t e) {
    const auto t = static_cast<int64_t>(experts.size()), k = static_cast<int64_t>(experts.at(0).size());
    std::vector<int32_t> places(static_cast<size_t>(t * k)), tokens, offsets = {0};
    for (int32_t i = 0; i < e; ++i) {
      for (size_t token = 0; token < experts.size(); ++token) {
        for (size_t j = 0; j < experts[token].size(); ++j) {
          if (experts[token][j] != i) continue;
          places[token * experts[token].size() + j] = static_cast<int32_t>(tokens.size());
          tokens.push_back(static_cast<int32_t>(token));
        }
      }
      offsets.push_back(static_cast<int32_t>(tokens.size()));
    }
    Routes r;
    r.weights = memory.poison(DType::kF32, {t, k});
    for (int64_t i = 0; i < t * k; ++i) Guarded::set(r.weights, i, std::ldexp(1.0F, static_cast<int>(-1 - i % k)));
    r.places = memory.ints(places, {t, k});
    r.tokens = memory.ints(tokens, {t * k});
    r.offsets = memory.ints(offsets, {e + 1});
    return r;
  }

  // k different ones of e experts for each of t tokens, the first ones more often.
  std::vector<std::vector<int32_t>> random_choice(int64_t t, int64_t e, int64_t k) {
    std::vector<std::vector<int32_t>> all;
    for (int64_t i = 0; i < t; ++i) {
      std::vector<int32_t> some(static_cast<size_t>(i % 3 == 0 ? e : std::min(e, k + 2)));
      std::iota(some.begin(), some.end(), 0);
      std::shuffle(some.begin(), some.end(), memory.rng());
      all.emplace_back(some.begin(), some.begin() + k);
    }
    return all;
  }

  // x [T] and gate with exact logits: x is 1 in its column t, gate holds logits[t][e] there.
  Routes route(const std::vector<std::vector<float>>& logits, const std::vector<float>& bias, const Routing& routing) {
    const auto t = static_cast<int64_t>(logits.size()), e = static_cast<int64_t>(logits.at(0).size());
    const Tensor x = memory.poison(DType::kF32, {t, t}), gate = memory.poison(DType::kF32, {e, t});
    for (int64_t i = 0; i < t; ++i) {
      for (int64_t j = 0; j < t; ++j) Guarded::set(x, i * t + j, i == j ? 1.0F : 0.0F);
      for (int64_t j = 0; j < e; ++j) {
        Guarded::set(gate, j * t + i, logits[static_cast<size_t>(i)][static_cast<size_t>(j)]);
      }
    }
    Tensor b;
    if (!bias.empty()) {
      b = memory.poison(DType::kF32, {e});
      for (int64_t i = 0; i < e; ++i) Guarded::set(b, i, bias[static_cast<size_t>(i)]);
    }
    return ops::moe_route(ctx(2), x, gate, b, routing);
  }
};

using Score = Routing::Score;

TEST_P(MoeTest, RoutesAsInDouble) {
  int threads = 0;
  for (const auto [x_type, gate_type] : kGateTypes) {
    for (const auto& [t, e, k, d] : std::vector<std::array<int64_t, 4>>{
             {1, 1, 1, 3}, {1, 64, 6, 2048}, {5, 7, 7, 33}, {33, 72, 6, 100}, {130, 13, 2, 65}}) {
      for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
        const bool normalise = score == Score::kSigmoid, biased = t % 2 == 1;
        SCOPED_TRACE(fmt::format("T {} E {} k {} D {} {} {} sigmoid {}", t, e, k, d, dtype_name(x_type),
                                 dtype_name(gate_type), normalise));
        const Tensor x = memory.normal(x_type, {t, d});
        const Tensor gate = memory.normal(gate_type, {e, d}, 2 / std::sqrt(static_cast<float>(d)));
        const Tensor bias = biased ? memory.normal(t % 4 == 1 ? DType::kBF16 : DType::kF32, {e}, 0.1F) : Tensor();
        const float scale = normalise ? 2.0F : 1.0F;
        threads = threads % 3 + 1;
        const Routes r = ops::moe_route(ctx(threads), x, gate, bias, {score, k, normalise, scale});
        const auto experts = chosen(r);
        for (int64_t i = 0; i < t && !HasFailure(); ++i) {
          SCOPED_TRACE(fmt::format("row {}", i));
          double error = 0;
          auto scores = logits(x, gate, i, error);
          score == Score::kSoftmax ? ref::softmax(scores.data(), e) : ref::sigmoid(scores.data(), e);
          error =
              2 * error + 16 * kEpsFloat;  // both functions turn an error of logits into a relative one, at most twice
          const auto worth = [&](int32_t expert) {
            return scores[static_cast<size_t>(expert)] + (biased ? at(bias, expert) : 0);
          };
          const auto& mine = experts[static_cast<size_t>(i)];
          double sum = 0;
          for (const int32_t expert : mine) sum += scores[static_cast<size_t>(expert)];
          for (size_t j = 0; j < mine.size(); ++j) {
            const double weight = scores[static_cast<size_t>(mine[j])] / (normalise ? sum + 1e-20 : 1) * scale;
            EXPECT_NEAR(at(r.weights, i * k + static_cast<int64_t>(j)), weight, weight * (normalise ? 3 : 1) * error);
            if (j > 0) {
              EXPECT_GE(worth(mine[j - 1]), worth(mine[j]) - 3 * error);
            }
          }
          for (int32_t expert = 0; expert < e; ++expert) {
            if (std::find(mine.begin(), mine.end(), expert) == mine.end()) {
              EXPECT_LE(worth(expert), worth(mine.back()) + 3 * error) << "expert " << expert << " was left out";
            }
          }
        }
        arena.reset();
      }
    }
  }
}

TEST_P(MoeTest, ARowIsRoutedTheSameAloneAndInABatch) {
  for (const auto [x_type, gate_type] : kGateTypes) {
    const int64_t t = 130, e = 64, k = 6;
    const Tensor x = memory.normal(x_type, {t, 2500}), gate = memory.normal(gate_type, {e, 2500}, 0.05F);
    const Routing routing{Score::kSoftmax, k, true, 1.5F};
    const Routes whole = ops::moe_route(ctx(3), x, gate, {}, routing);
    const auto experts = chosen(whole);
    for (const int64_t i : {0, 1, 17, 129}) {
      const Routes one = ops::moe_route(ctx(2), x.slice(i, i + 1), gate, {}, routing);
      EXPECT_TRUE(same_bits(one.weights, whole.weights.slice(i, i + 1))) << i;
      EXPECT_EQ(chosen(one)[0], experts[static_cast<size_t>(i)]);
    }
    arena.reset();
  }
}

TEST_P(MoeTest, TheLowerExpertWinsATie) {
  const auto experts = chosen(route({{1, 1, 1, 1, 1}, {0, 2, 1, 2, 1}, {5, 4, 5, 5, 4}}, {}, {.top_k = 3}));
  EXPECT_EQ(experts[0], (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(experts[1], (std::vector<int32_t>{1, 3, 2}));
  EXPECT_EQ(experts[2], (std::vector<int32_t>{0, 2, 3}));
}

TEST_P(MoeTest, TheBiasChoosesButDoesNotWeigh) {
  const Routing routing{Score::kSigmoid, 2, false, 1};
  const std::vector<std::vector<float>> logits = {{0, 1, 2, -1}};
  const Routes plain = route(logits, {}, routing), biased = route(logits, {0, 0, 0, 1}, routing);
  EXPECT_EQ(chosen(plain)[0], (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(chosen(biased)[0], (std::vector<int32_t>{3, 2}));
  EXPECT_NEAR(at(biased.weights, 0), 1 / (1 + std::exp(1.0)), 1e-6);
  EXPECT_NEAR(at(biased.weights, 1), 1 / (1 + std::exp(-2.0)), 1e-6);
}

TEST_P(MoeTest, NormalisesThenScales) {
  const std::vector<std::vector<float>> logits = {{0, 1, 2, -1}};
  const double a = std::exp(2.0), b = std::exp(1.0), all = a + b + 1 + std::exp(-1.0);
  const Routes plain = route(logits, {}, {Score::kSoftmax, 2, false, 3});
  EXPECT_NEAR(at(plain.weights, 0), 3 * a / all, 1e-6);
  const Routes normal = route(logits, {}, {Score::kSoftmax, 2, true, 3});
  EXPECT_NEAR(at(normal.weights, 0), 3 * a / (a + b), 1e-6);
  EXPECT_NEAR(at(normal.weights, 1), 3 * b / (a + b), 1e-6);
  // Scores that are all zero stay zero.
  const Routes none = route({{-200, -200, -200}}, {}, {Score::kSigmoid, 2, true, 3});
  EXPECT_EQ(at(none.weights, 0), 0);
}

TEST_P(MoeTest, NotANumberIsChosenLastAndBreaksNothing) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const Routing sigmoid{Score::kSigmoid, 2, true, 1}, softmax{Score::kSoftmax, 4, true, 1};
  EXPECT_EQ(chosen(route({{nan, 1, nan, 2}}, {}, sigmoid))[0], (std::vector<int32_t>{3, 1}));
  chosen(route({{nan, 1, nan, 2}, {nan, nan, nan, nan}, {inf, inf, -inf, 0}, {-inf, -inf, -inf, -inf}}, {}, softmax));
  chosen(route({{1, 2, 3, 4}}, {nan, nan, nan, nan}, sigmoid));
}

// Row r of the grouped ops is, bit for bit, what the dense op gives for its row and its expert.
TEST_P(MoeTest, GroupedIsDenseRowByRow) {
  int threads = 0;
  for (const auto [x_type, w_type] : kTypes) {
    for (const auto& [t, e, k, n, d] : std::vector<std::array<int64_t, 5>>{
             {1, 1, 1, 1, 1}, {1, 64, 6, 48, 96}, {3, 7, 2, 37, 65}, {20, 5, 3, 70, 2100}, {150, 9, 2, 33, 130}}) {
      SCOPED_TRACE(
          fmt::format("T {} E {} k {} N {} D {} {} {}", t, e, k, n, d, dtype_name(x_type), dtype_name(w_type)));
      threads = threads % 3 + 1;
      const Tensor x = memory.normal(x_type, {t, d}), grouped_x = memory.normal(x_type, {t * k, d});
      const auto gate_up = experts(w_type, e, 2, n, d, n % 2 == 1), down = experts(w_type, e, 1, n, d, n % 2 == 1);
      const auto choice = random_choice(t, e, k);
      const Routes r = routes(choice, e);
      const Tensor a = ops::grouped_gate_up_silu(ctx(threads), x, r, gate_up);
      const Tensor b = ops::grouped_linear(ctx(threads), grouped_x, r, down);
      ASSERT_EQ(a.describe(), Tensor(nullptr, x_type, {t * k, n}).describe());
      ASSERT_EQ(b.describe(), a.describe());
      for (int64_t i = 0; i < t * k; ++i) {
        const int64_t token = i / k, place = r.places.as<int32_t>()[i];
        const auto expert = static_cast<size_t>(choice[static_cast<size_t>(token)][static_cast<size_t>(i % k)]);
        const auto scope = arena.scope();
        ASSERT_TRUE(
            same_bits(a.slice(place, place + 1), ops::gate_up_silu(ctx(1), x.slice(token, token + 1), gate_up[expert])))
            << "gate_up, row " << place;
        ASSERT_TRUE(
            same_bits(b.slice(place, place + 1), ops::linear(ctx(1), grouped_x.slice(place, place + 1), down[expert])))
            << "linear, row " << place;
      }
      arena.reset();
    }
  }
}

// Several blocks of rows of x for one expert.
TEST_P(MoeTest, OneExpertForAllIsLinear) {
  const int64_t t = 300, n = 40, d = 50;
  const Tensor x = memory.normal(DType::kBF16, {t, d});
  const auto all = experts(DType::kBF16, 3, 1, n, d, true);
  const Routes r = routes(std::vector<std::vector<int32_t>>(static_cast<size_t>(t), {1}), 3);
  EXPECT_TRUE(same_bits(ops::grouped_linear(ctx(3), x, r, all), ops::linear(ctx(2), x, all[1])));
}

// An expert is gate | up, silu, down as in double; the weighted sum of a token's experts follows.
TEST_P(MoeTest, ExpertsAsInDouble) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const int64_t t = 11, e = 5, k = 3, d = 70, f = 45;
    const double eps = eps_of(type);
    const Tensor x = memory.normal(type, {t, d});
    const auto gate_up = experts(type, e, 2, f, d, false), down = experts(type, e, 1, d, f, false);
    const auto choice = random_choice(t, e, k);
    const Routes r = routes(choice, e);
    const Ctx c = ctx(2);
    const Tensor hidden = ops::grouped_gate_up_silu(c, x, r, gate_up);
    const Tensor y = ops::moe_combine(c, ops::grouped_linear(c, hidden, r, down), r);
    ASSERT_EQ(y.describe(), x.describe());
    for (int64_t i = 0; i < t; ++i) {
      std::vector<double> expected(static_cast<size_t>(d), 0.0), size(static_cast<size_t>(d), 0.0);
      for (int64_t j = 0; j < k; ++j) {
        const auto expert = static_cast<size_t>(choice[static_cast<size_t>(i)][static_cast<size_t>(j)]);
        const auto row = doubles(x.slice(i, i + 1));
        const auto gate = doubles(gate_up[expert].data[0]), up = doubles(gate_up[expert].data[1]),
                   out = doubles(down[expert].data[0]);
        std::vector<double> h;
        for (int64_t n = 0; n < f; ++n) {
          h.push_back(ref::silu(ref::dot(row.data(), &gate[static_cast<size_t>(n * d)], d)) *
                      ref::dot(row.data(), &up[static_cast<size_t>(n * d)], d));
        }
        for (int64_t n = 0; n < d; ++n) {
          const double weight = at(r.weights, i * k + j);
          for (int64_t m = 0; m < f; ++m) {
            const double term = weight * h[static_cast<size_t>(m)] * out[static_cast<size_t>(n * f + m)];
            expected[static_cast<size_t>(n)] += term;
            size[static_cast<size_t>(n)] += std::abs(term);
          }
        }
      }
      // Hidden values are off by a few eps of themselves (four roundings, and sums whose terms cancel), then two more.
      for (int64_t n = 0; n < d; ++n) {
        EXPECT_NEAR(at(y, i * d + n), expected[static_cast<size_t>(n)],
                    12 * eps * size[static_cast<size_t>(n)] + eps * std::abs(expected[static_cast<size_t>(n)]))
            << dtype_name(type) << " row " << i << " column " << n;
      }
    }
    arena.reset();
  }
}

TEST_P(MoeTest, UnchosenExpertsAreNotRead) {
  const int64_t t = 2, e = 9, n = 48, d = 64;
  const size_t bytes = static_cast<size_t>(2 * n * d) * 2;
  void* forbidden = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(forbidden, MAP_FAILED);
  auto gate_up = experts(DType::kBF16, e, 2, n, d, true), down = experts(DType::kBF16, e, 1, n, d, true);
  for (size_t i = 0; i < gate_up.size(); ++i) {
    if (i == 3 || i == 7) continue;
    for (Weight* w : {&gate_up[i], &down[i]}) {
      for (size_t part = 0; part < static_cast<size_t>(w->parts); ++part) {
        w->data[part].data = w->bias[part].data = forbidden;
      }
    }
  }
  const Routes r = routes({{3, 7}, {7, 3}}, e);
  const Tensor x = memory.normal(DType::kBF16, {t, d}), h = memory.normal(DType::kBF16, {2 * t, d});
  EXPECT_EQ(ops::grouped_gate_up_silu(ctx(2), x, r, gate_up).dim(0), 2 * t);
  EXPECT_EQ(ops::grouped_linear(ctx(2), h, r, down).dim(0), 2 * t);
  ::munmap(forbidden, bytes);
}

TEST_P(MoeTest, CombineAddsInOrderAndRoundsOnce) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const auto& [t, k, d] :
         std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {1, 6, 2048}, {7, 3, 37}, {64, 6, 100}}) {
      const Tensor x = memory.normal(type, {t * k, d});
      Routes r = routes(random_choice(t, k + 3, k), k + 3);
      r.weights = memory.normal(DType::kF32, {t, k});
      const Tensor y = ops::moe_combine(ctx(static_cast<int>(t) % 3 + 1), x, r), expected = memory.poison(type, {t, d});
      for (int64_t i = 0; i < t; ++i) {
        const auto* places = r.places.row<int32_t>(i);
        const float* weights = r.weights.row<float>(i);
        if (type == DType::kBF16) {
          ref::combine(x.as<BFloat16>(), places, weights, k, d, expected.row<BFloat16>(i));
        } else {
          ref::combine(x.as<float>(), places, weights, k, d, expected.row<float>(i));
        }
      }
      EXPECT_TRUE(same_bits(y, expected)) << dtype_name(type) << " T " << t << " k " << k << " D " << d;
    }
  }
}

TEST_P(MoeTest, NoRows) {
  const Ctx c = ctx(2);
  const Tensor x = memory.poison(DType::kBF16, {0, 8});
  const Routes r = ops::moe_route(c, x, memory.normal(DType::kF32, {5, 8}), {}, {.top_k = 2});
  EXPECT_EQ(r.weights.describe(), "F32[0, 2]");
  for (int i = 0; i < 6; ++i) EXPECT_EQ(r.offsets.as<int32_t>()[i], 0);
  const Tensor h = ops::grouped_gate_up_silu(c, x, r, experts(DType::kBF16, 5, 2, 3, 8, false));
  EXPECT_EQ(h.describe(), "BF16[0, 3]");
  const Tensor y = ops::grouped_linear(c, h, r, experts(DType::kBF16, 5, 1, 8, 3, false));
  EXPECT_EQ(ops::moe_combine(c, y, r).describe(), "BF16[0, 8]");
}

INSTANTIATE_FOR_ISAS(MoeTest);

}  // namespace
}  // namespace saccade
