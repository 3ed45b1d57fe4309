#include "ops/op_test.h"

namespace saccade {
namespace {

struct Types {
  DType x, w;
};
constexpr Types kTypes[] = {{DType::kBF16, DType::kBF16}, {DType::kF32, DType::kBF16}, {DType::kF32, DType::kF32}};

// A sum, the size of its terms, and how far a float sum of k terms may be off: each term's rounding error is at most
// eps of a partial sum, and they add like a random walk.
struct Sum {
  double value = 0, size = 0;
  double error(int64_t k) const { return kEpsFloat * (4 * std::sqrt(static_cast<double>(k)) + 8) * size; }
};

class LinearTest : public OpTest {
 protected:
  // parts of `rows` rows of k columns each; rows of w are about unit length.
  Weight weight(DType dtype, std::initializer_list<int64_t> rows, int64_t k, bool bias) {
    Weight w;
    for (const int64_t n : rows) {
      const auto part = static_cast<size_t>(w.parts++);
      w.data[part] = memory.normal(dtype, {n, k}, 1 / std::sqrt(static_cast<float>(k)));
      if (bias) w.bias[part] = memory.normal(dtype, {n});
    }
    return w;
  }

  static Sum sum(const Tensor& x, const Weight& w, int64_t t, int64_t n) {
    size_t part = 0;
    while (n >= w.data[part].dim(0)) n -= w.data[part++].dim(0);
    const int64_t k = w.cols();
    Sum s;
    for (int64_t i = 0; i < k; ++i) {
      const double term = at(x, t * k + i) * at(w.data[part], n * k + i);
      s.value += term;
      s.size += std::abs(term);
    }
    if (w.bias[part]) {
      s.value += at(w.bias[part], n);
      s.size += std::abs(at(w.bias[part], n));
    }
    return s;
  }

  template <class Each>
  static void for_all(int64_t t, int64_t n, Each each) {
    for (int64_t i = 0; i < t; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        SCOPED_TRACE(fmt::format("row {} column {}", i, j));
        each(i, j);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
};

TEST_P(LinearTest, MatchesDouble) {
  int threads = 0;
  for (const auto [x_type, w_type] : kTypes) {
    for (const int64_t t : {1, 2, 3, 7, 33, 130}) {
      for (const auto& [rows, k] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {5, 7}, {17, 33}, {64, 64}, {131, 100}, {19, 2050}, {33, 4097}}) {
        SCOPED_TRACE(fmt::format("T {} N {} + 3 K {} {} {}", t, rows, k, dtype_name(x_type), dtype_name(w_type)));
        const Tensor x = memory.normal(x_type, {t, k});
        const Weight w = weight(w_type, {rows, 2, 1}, k, k % 2 == 1);
        threads = threads % 3 + 1;
        const Tensor y = ops::linear(ctx(threads), x, w);
        ASSERT_EQ(y.describe(), Tensor(nullptr, x_type, {t, rows + 3}).describe());
        for_all(t, rows + 3, [&](int64_t i, int64_t j) {
          const Sum s = sum(x, w, i, j);
          EXPECT_NEAR(at(y, i * (rows + 3) + j), s.value, s.error(k) + eps_of(x_type) * std::abs(s.value));
        });
        arena.reset();
      }
    }
  }
}

TEST_P(LinearTest, ARowIsTheSameAloneAndInABatch) {
  for (const auto [x_type, w_type] : kTypes) {
    for (const int64_t k : {96, 1000, 4097}) {
      SCOPED_TRACE(fmt::format("K {} {} {}", k, dtype_name(x_type), dtype_name(w_type)));
      const Tensor x = memory.normal(x_type, {130, k});
      const Weight w = weight(w_type, {70, 33}, k, true);
      const Tensor whole = ops::linear(ctx(2), x, w);
      const std::vector<int64_t> cuts = {0, 1, 2, 4, 9, 17, 50, 129, 130};
      for (size_t c = 1; c < cuts.size(); ++c) {
        const Tensor part = ops::linear(ctx(static_cast<int>(c) % 3 + 1), x.slice(cuts[c - 1], cuts[c]), w);
        EXPECT_TRUE(same_bits(part, whole.slice(cuts[c - 1], cuts[c]))) << "rows from " << cuts[c - 1];
      }
      arena.reset();
    }
  }
}

TEST_P(LinearTest, AddRoundsTheProductThenTheSum) {
  for (const auto [x_type, w_type] : kTypes) {
    const int64_t t = 7, n = 45, k = 70;
    const Tensor x = memory.normal(x_type, {t, k}), h = memory.normal(x_type, {t, n});
    const Weight w = weight(w_type, {n}, k, true);
    const Tensor product = ops::linear(ctx(1), x, w);
    const Tensor expected = memory.poison(x_type, {t, n});
    for (int64_t i = 0; i < t * n; ++i) {
      Guarded::set(expected, i, static_cast<float>(at(h, i)) + static_cast<float>(at(product, i)));
    }
    ops::linear_add_(ctx(2), h, x, w);
    EXPECT_TRUE(same_bits(h, expected)) << dtype_name(x_type) << dtype_name(w_type);
  }
}

TEST_P(LinearTest, LogitsAreRoundedFloats) {
  for (const auto [x_type, w_type] : kTypes) {
    const int64_t t = 3, n = 301, k = 40;
    const Tensor x = memory.normal(x_type, {t, k});
    const Weight w = weight(w_type, {n}, k, false);
    const Tensor rounded = ops::linear(ctx(1), x, w), y = ops::logits(ctx(3), x, w);
    ASSERT_EQ(y.dtype, DType::kF32);
    for (int64_t i = 0; i < t * n; ++i) ASSERT_EQ(at(y, i), at(rounded, i)) << i;
  }
}

TEST_P(LinearTest, GateUpSilu) {
  for (const auto [x_type, w_type] : kTypes) {
    const double eps = eps_of(x_type);
    for (const int64_t t : {1, 7, 130}) {
      for (const auto& [f, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 3}, {37, 64}, {150, 2100}}) {
        SCOPED_TRACE(fmt::format("T {} F {} K {} {} {}", t, f, k, dtype_name(x_type), dtype_name(w_type)));
        const Tensor x = memory.normal(x_type, {t, k}, 2);
        const Weight w = weight(w_type, {f, f}, k, true);
        const Tensor y = ops::gate_up_silu(ctx(static_cast<int>(t) % 3 + 1), x, w);
        for_all(t, f, [&](int64_t i, int64_t j) {
          const Sum gate = sum(x, w, i, j), up = sum(x, w, i, f + j);
          // Both sums are rounded, then silu (slope at most 1.1; a few ulps of float), then the product.
          const double gate_error = gate.error(k) + eps * std::abs(gate.value);
          const double up_error = up.error(k) + eps * std::abs(up.value);
          const double s = ref::silu(gate.value), expected = s * up.value;
          const double s_error = 1.1 * gate_error + (eps + 4 * kEpsFloat) * (std::abs(s) + 1.1 * gate_error);
          EXPECT_NEAR(
              at(y, i * f + j), expected,
              s_error * (std::abs(up.value) + up_error) + std::abs(s) * up_error + 1.01 * eps * std::abs(expected));
        });
        arena.reset();
      }
    }
  }
}

TEST_P(LinearTest, GateUpSiluIsTheSameAloneAndInABatch) {
  for (const auto [x_type, w_type] : kTypes) {
    const Tensor x = memory.normal(x_type, {33, 500});
    const Weight w = weight(w_type, {71, 71}, 500, true);
    const Tensor whole = ops::gate_up_silu(ctx(3), x, w);
    for (const int64_t t : {0, 1, 16, 32}) {
      EXPECT_TRUE(same_bits(ops::gate_up_silu(ctx(2), x.slice(t, t + 1), w), whole.slice(t, t + 1))) << t;
    }
  }
}

TEST_P(LinearTest, NoRows) {
  const Weight w = weight(DType::kBF16, {5}, 8, true);
  EXPECT_EQ(ops::linear(ctx(2), memory.poison(DType::kBF16, {0, 8}), w).dim(0), 0);
}

// A value that is not finite reaches its own row's outputs and no other's.
TEST_P(LinearTest, NotFinite) {
  for (const auto [x_type, w_type] : kTypes) {
    const Tensor x = memory.normal(x_type, {9, 40});
    const Weight w = weight(w_type, {21}, 40, false);
    Guarded::set(x, 4 * 40 + 39, std::numeric_limits<float>::quiet_NaN());
    const Tensor y = ops::linear(ctx(2), x, w);
    for (int64_t i = 0; i < y.numel(); ++i) EXPECT_EQ(std::isnan(at(y, i)), i / 21 == 4) << i;
  }
}

INSTANTIATE_FOR_ISAS(LinearTest);

}  // namespace
}  // namespace saccade
