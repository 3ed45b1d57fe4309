#include <array>

#include "ops/op_test.h"

namespace saccade {
namespace {

constexpr DType kTypes[] = {DType::kBF16, DType::kF32};

using RowsTest = OpTest;

// Distance in representable bf16 values.
int64_t bf16_steps(BFloat16 a, BFloat16 b) {
  const auto place = [](BFloat16 x) { return x.bits & 0x8000 ? -int64_t{x.bits & 0x7fff} : int64_t{x.bits}; };
  return std::abs(place(a) - place(b));
}

std::vector<BFloat16> all_finite_bf16() {
  std::vector<BFloat16> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 x{};
    x.bits = static_cast<uint16_t>(bits);
    if (std::isfinite(float(x))) values.push_back(x);
  }
  return values;
}

TEST_P(RowsTest, GeluOfEveryBf16IsWithinOneStep) {
  const std::vector<BFloat16> values = all_finite_bf16();
  const auto n = static_cast<int64_t>(values.size());
  const Tensor x = memory.poison(DType::kBF16, {1, n});
  std::memcpy(x.data, values.data(), x.bytes());
  const Tensor y = ops::gelu(ctx(2), x);
  for (int64_t i = 0; i < n; ++i) {
    const double exact = ref::gelu(at(x, i));
    if (std::abs(exact) < 0x1p-126) {  // denormals may be flushed
      ASSERT_LE(std::abs(at(y, i)), 0x1p-126) << at(x, i);
    } else {
      ASSERT_LE(bf16_steps(y.as<BFloat16>()[i], BFloat16(static_cast<float>(exact))), 1) << at(x, i);
    }
  }
}

TEST_P(RowsTest, GeluOfFloats) {
  const Tensor x = memory.normal(DType::kF32, {7, 1001}, 3);
  const Tensor y = ops::gelu(ctx(3), x);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double exact = ref::gelu(at(x, i));
    // In the tail what counts is -x^2 / 2: of a rounded x / sqrt 2, and itself rounded.
    ASSERT_NEAR(at(y, i), exact, (16 + 3 * at(x, i) * at(x, i)) * kEpsFloat * std::abs(exact)) << at(x, i);
  }
}

TEST_P(RowsTest, SiluOfEveryBf16IsWithinOneStep) {
  std::vector<BFloat16> values = all_finite_bf16();
  std::vector<float> gate(values.size()), up(values.size(), 1);
  for (size_t i = 0; i < values.size(); ++i) gate[i] = float(values[i]);
  cpu::kernels().bf16.finish(cpu::LinearOut::kGateUpSilu, gate.data(), up.data(), nullptr, nullptr, values.data(),
                             static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    const double exact = ref::silu(static_cast<double>(gate[i]));
    if (std::abs(exact) < 0x1p-119) {  // 1 + e^-x overflows float where x e^x is below its normal range
      ASSERT_LE(std::abs(float(values[i])), 0x1p-119F) << gate[i];
    } else {
      ASSERT_LE(bf16_steps(values[i], BFloat16(static_cast<float>(exact))), 1) << gate[i];
    }
  }
}

TEST_P(RowsTest, RmsNorm) {
  for (const DType dtype : kTypes) {
    for (const int64_t d : {1, 7, 16, 33, 1280, 2051}) {
      for (const int64_t t : {1, 3, 130}) {
        SCOPED_TRACE(fmt::format("{} D {} T {}", dtype_name(dtype), d, t));
        const Tensor x = memory.normal(dtype, {t, d}, 3), w = memory.normal(dtype, {d});
        const Tensor y = ops::rms_norm(ctx(static_cast<int>(t) % 3 + 1), x, w, 1e-6F);
        const std::vector<double> xs = doubles(x), ws = doubles(w);
        std::vector<double> expected(static_cast<size_t>(d));
        for (int64_t i = 0; i < t; ++i) {
          ref::rms_norm(xs.data() + i * d, ws.data(), expected.data(), d, 1e-6F);
          for (int64_t j = 0; j < d; ++j) {
            // Rounded twice; the scale is off by half of what the sum of squares is.
            const double relative = 2.01 * eps_of(dtype) + kEpsFloat * (std::sqrt(static_cast<double>(d)) + 8);
            ASSERT_NEAR(at(y, i * d + j), expected[static_cast<size_t>(j)],
                        relative * std::abs(expected[static_cast<size_t>(j)]));
          }
          EXPECT_TRUE(same_bits(ops::rms_norm(ctx(1), x.slice(i, i + 1), w, 1e-6F), y.slice(i, i + 1)));
        }
        arena.reset();
      }
    }
  }
}

TEST_P(RowsTest, GeluTanhOfEveryBf16IsWithinOneStep) {
  const std::vector<BFloat16> values = all_finite_bf16();
  const auto n = static_cast<int64_t>(values.size());
  const Tensor x = memory.poison(DType::kBF16, {1, n});
  std::memcpy(x.data, values.data(), x.bytes());
  const Tensor y = ops::gelu_tanh(ctx(2), x);
  for (int64_t i = 0; i < n; ++i) {
    const double exact = ref::gelu_tanh(at(x, i));
    if (std::abs(exact) < 0x1p-119) {  // 1 + e^-2u overflows float where x e^2u is below its normal range
      ASSERT_LE(std::abs(at(y, i)), 0x1p-119) << at(x, i);
    } else {
      ASSERT_LE(bf16_steps(y.as<BFloat16>()[i], BFloat16(static_cast<float>(exact))), 1) << at(x, i);
    }
  }
}

TEST_P(RowsTest, GeluTanhOfFloats) {
  const Tensor x = memory.normal(DType::kF32, {7, 1001}, 3);
  const Tensor y = ops::gelu_tanh(ctx(3), x);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double v = at(x, i), u = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
    // As it is defined; in the left tail, where that cancels, by the other form of the formula.
    const double exact = v > -3 ? v / 2 * (1 + std::tanh(u)) : ref::gelu_tanh(v);
    // e^-2u is off by what rounding does to its argument, and may overflow.
    ASSERT_NEAR(at(y, i), exact, (16 + 10 * std::abs(u)) * kEpsFloat * std::abs(exact) + 0x1p-119) << v;
  }
}

TEST_P(RowsTest, LayerNorm) {
  for (const DType dtype : kTypes) {
    for (const int64_t d : {1, 7, 16, 33, 1152, 2051}) {
      for (const int64_t t : {1, 3, 130}) {
        SCOPED_TRACE(fmt::format("{} D {} T {}", dtype_name(dtype), d, t));
        const Tensor x = memory.normal(dtype, {t, d}, 3), w = memory.normal(dtype, {d}), b = memory.normal(dtype, {d});
        for (int64_t i = 0; i < d; ++i) Guarded::set(x, i, 10 + static_cast<float>(at(x, i)));  // a mean far from zero
        const Tensor y = ops::layer_norm(ctx(static_cast<int>(t) % 3 + 1), x, w, b, 1e-6F);
        const std::vector<double> xs = doubles(x), ws = doubles(w), bs = doubles(b);
        std::vector<double> expected(static_cast<size_t>(d));
        for (int64_t i = 0; i < t; ++i) {
          const double* row = xs.data() + i * d;
          ref::layer_norm(row, ws.data(), bs.data(), expected.data(), d, 1e-6F);
          double mean = 0, variance = 1e-6, largest = 0;
          for (int64_t j = 0; j < d; ++j) {
            mean += row[j] / static_cast<double>(d);
            largest = std::max(largest, std::abs(row[j]));
          }
          for (int64_t j = 0; j < d; ++j) variance += (row[j] - mean) * (row[j] - mean) / static_cast<double>(d);
          // The mean is off by roundings of a sum of values up to the largest, the scale by those of the squares.
          const double many = kEpsFloat * (std::sqrt(static_cast<double>(d)) + 8);
          for (int64_t j = 0; j < d; ++j) {
            const double value = expected[static_cast<size_t>(j)];
            const double off = many * (largest / std::sqrt(variance) * 2) * std::abs(ws[static_cast<size_t>(j)]) +
                               4 * kEpsFloat * std::abs(bs[static_cast<size_t>(j)]);
            ASSERT_NEAR(at(y, i * d + j), value, off + 1.01 * eps_of(dtype) * std::abs(value)) << i << " " << j;
          }
          EXPECT_TRUE(same_bits(ops::layer_norm(ctx(1), x.slice(i, i + 1), w, b, 1e-6F), y.slice(i, i + 1)));
        }
        arena.reset();
      }
    }
  }
}

TEST_P(RowsTest, AddRowsRepeats) {
  for (const DType dtype : kTypes) {
    for (const auto& [t, n, d] :
         std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {6, 2, 33}, {130, 130, 48}, {9, 1, 7}}) {
      SCOPED_TRACE(fmt::format("{} T {} N {} D {}", dtype_name(dtype), t, n, d));
      const Tensor h = memory.normal(dtype, {t, d}), rows = memory.normal(dtype, {n, d});
      const std::vector<double> before = doubles(h);
      ops::add_rows_(ctx(3), h, rows);
      for (int64_t i = 0; i < h.numel(); ++i) {
        const float sum =
            static_cast<float>(before[static_cast<size_t>(i)]) + static_cast<float>(at(rows, i / d % n * d + i % d));
        ASSERT_EQ(at(h, i), dtype == DType::kBF16 ? float(BFloat16(sum)) : sum) << i;
      }
    }
  }
}

TEST_P(RowsTest, UnfoldPutsChannelsFirstAndZerosBeyondTheEdges) {
  struct Case {
    int64_t n, h, w, d, k;
  };
  for (const DType dtype : kTypes) {
    for (const Case& c : {Case{2, 3, 5, 7, 2}, {1, 1, 1, 3, 2}, {3, 4, 4, 16, 2}, {1, 7, 2, 5, 3}, {2, 2, 3, 4, 1}}) {
      SCOPED_TRACE(fmt::format("{} {}x{}x{}x{} by {}", dtype_name(dtype), c.n, c.h, c.w, c.d, c.k));
      const Tensor x = memory.normal(dtype, {c.n, c.h, c.w, c.d});
      const Tensor y = ops::unfold(ctx(2), x, c.k);
      const int64_t rows = (c.h + c.k - 1) / c.k, columns = (c.w + c.k - 1) / c.k, places = c.k * c.k;
      ASSERT_EQ(y.numel(), c.n * rows * columns * c.d * places);
      ASSERT_EQ(y.dim(1), rows);
      ASSERT_EQ(y.dim(2), columns);
      for (int64_t i = 0; i < y.numel(); ++i) {
        const int64_t place = i % places, channel = i / places % c.d, to = i / places / c.d;
        const int64_t row = to / columns % rows * c.k + place / c.k, column = to % columns * c.k + place % c.k;
        const int64_t from = ((to / columns / rows * c.h + row) * c.w + column) * c.d + channel;
        ASSERT_EQ(at(y, i), row < c.h && column < c.w ? at(x, from) : 0) << i;
      }
    }
  }
}

TEST_P(RowsTest, EmbedAndGather) {
  for (const DType from : kTypes) {
    const Tensor table = memory.normal(from, {11, 37}), ids = memory.ints<int32_t>({10, 0, 3, 3}, {4});
    for (const DType to : kTypes) {
      const Tensor y = ops::embed(ctx(2), table, ids, to);
      ASSERT_EQ(y.dtype, to);
      for (int64_t i = 0; i < y.numel(); ++i) {
        const double exact = at(table, ids.as<int32_t>()[i / 37] * 37 + i % 37);
        ASSERT_EQ(at(y, i), to == DType::kBF16 ? float(BFloat16(static_cast<float>(exact))) : exact) << i;
      }
    }
    const Tensor picked = ops::gather_rows(ctx(3), table, ids);
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t row = ids.as<int32_t>()[i];
      EXPECT_TRUE(same_bits(picked.slice(i, i + 1), table.slice(row, row + 1)));
    }
  }
}

TEST_P(RowsTest, RopeTableTakesEachSectionsPosition) {
  const std::array<int64_t, 3> sections = {1, 3, 4};
  const Tensor positions = memory.ints<int32_t>({0, 5, 4000, 1, 6, 4100, 2, 7, 32000}, {3, 3});
  for (const DType dtype : kTypes) {
    const Tensor y = ops::rope_table(ctx(2), positions, sections, 1e6, 16, dtype);
    ASSERT_EQ(y.describe(), "F32[3, 2, 8]");
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t j = 0; j < 8; ++j) {
        const int64_t axis = j < 1 ? 0 : j < 4 ? 1 : 2;
        const double angle = positions.as<int32_t>()[axis * 3 + t] * std::pow(1e6, -2.0 * static_cast<double>(j) / 16);
        // The angle is a float, from a float frequency: off by up to three roundings.
        const double error = 3 * kEpsFloat * angle + eps_of(dtype);
        EXPECT_NEAR(at(y, t * 16 + j), std::cos(angle), error);
        EXPECT_NEAR(at(y, t * 16 + 8 + j), std::sin(angle), error);
        if (dtype == DType::kBF16) {
          EXPECT_EQ(at(y, t * 16 + j), float(BFloat16(y.as<float>()[t * 16 + j])));
        }
      }
    }
  }
}

TEST_P(RowsTest, RopeTableOfOneAxisIsOrdinaryRope) {
  const Tensor positions = memory.ints<int32_t>({0, 1, 4095}, {1, 3});
  const std::array<int64_t, 1> sections = {4};
  const Tensor y = ops::rope_table(ctx(2), positions, sections, 1e4, 8, DType::kF32);
  ASSERT_EQ(y.describe(), "F32[3, 2, 4]");
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t j = 0; j < 4; ++j) {
      const double angle = positions.as<int32_t>()[t] * std::pow(1e4, -2.0 * static_cast<double>(j) / 8);
      EXPECT_NEAR(at(y, t * 8 + j), std::cos(angle), 4 * kEpsFloat * (1 + angle));
      EXPECT_NEAR(at(y, t * 8 + 4 + j), std::sin(angle), 4 * kEpsFloat * (1 + angle));
    }
  }
}

TEST_P(RowsTest, VisionRopeTableTurnsWithRowThenColumn) {
  const Tensor positions = memory.ints<int32_t>({0, 3, 90, 1, 7, 50}, {2, 3});
  const Tensor y = ops::vision_rope_table(ctx(2), positions, 1e4, 16);
  ASSERT_EQ(y.describe(), "F32[3, 2, 8]");
  for (int64_t p = 0; p < 3; ++p) {
    for (int64_t j = 0; j < 8; ++j) {
      const double angle =
          positions.as<int32_t>()[j / 4 * 3 + p] * std::pow(1e4, -2.0 * static_cast<double>(j % 4) / 8);
      EXPECT_NEAR(at(y, p * 16 + j), std::cos(angle), 3 * kEpsFloat * angle + kEpsFloat);
      EXPECT_NEAR(at(y, p * 16 + 8 + j), std::sin(angle), 3 * kEpsFloat * angle + kEpsFloat);
    }
  }
}

// Rounding places are exact, so the portable formula gives the very bits.
TEST_P(RowsTest, QkvRopeAppend) {
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {2, 16, 18, 80, 128}) {
      const int64_t t = 5, heads = 6, kv_heads = 2, pages = 3, width = (heads + 2 * kv_heads) * dim;
      SCOPED_TRACE(fmt::format("{} Dh {}", dtype_name(dtype), dim));
      const Tensor qkv = memory.normal(dtype, {t, width}), cos_sin = memory.normal(DType::kF32, {t, 2, dim / 2});
      const std::vector<int32_t> slots = {0, 63, 64, 191, 100};
      PagedKv kv;
      kv.slots = memory.ints(slots, {t});
      const Tensor layer = memory.poison(dtype, {pages, 2, kv_heads, kPageTokens, dim});
      const Tensor expected = memory.poison(dtype, {pages, 2, kv_heads, kPageTokens, dim});
      const Tensor q_expected = memory.poison(dtype, {t, heads, dim});
      const auto fill = [&]<class T>(T) {
        for (int64_t i = 0; i < t; ++i) {
          const T* row = qkv.row<T>(i);
          for (int64_t h = 0; h < heads + kv_heads; ++h) {
            const int64_t slot = slots[static_cast<size_t>(i)];
            const int64_t k_at = ((slot / 64 * 2 * kv_heads + h - heads) * 64 + slot % 64) * dim;
            T* to = h < heads ? q_expected.row<T>(i) + h * dim : expected.as<T>() + k_at;
            ref::rope<true>(row + h * dim, cos_sin.row<float>(i), to, dim);
            if (h >= heads) {
              std::memcpy(to + kv_heads * 64 * dim, row + (h + kv_heads) * dim, static_cast<size_t>(dim) * sizeof(T));
            }
          }
        }
      };
      dtype == DType::kBF16 ? fill(BFloat16{}) : fill(float{});
      const Tensor q = ops::qkv_rope_append(ctx(2), qkv, cos_sin, layer, kv, heads, kv_heads);
      EXPECT_TRUE(same_bits(q, q_expected));
      EXPECT_TRUE(same_bits(layer, expected));  // and no other slot is touched
    }
  }
}

TEST_P(RowsTest, VisionRope) {
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {4, 16, 20, 80}) {
      SCOPED_TRACE(fmt::format("{} Dh {}", dtype_name(dtype), dim));
      const int64_t p = 130, heads = 3;
      const Tensor qkv = memory.normal(dtype, {p, 3, heads, dim}),
                   cos_sin = memory.normal(DType::kF32, {p, 2, dim / 2});
      const Tensor expected = memory.poison(dtype, {p, 3, heads, dim});
      std::memcpy(expected.data, qkv.data, qkv.bytes());
      const auto turn = [&]<class T>(T) {
        for (int64_t i = 0; i < p; ++i) {
          for (int64_t h = 0; h < 2 * heads; ++h) {
            T* x = expected.row<T>(i) + h * dim;
            ref::rope<false>(x, cos_sin.row<float>(i), x, dim);
          }
        }
      };
      dtype == DType::kBF16 ? turn(BFloat16{}) : turn(float{});
      ops::vision_rope_(ctx(3), qkv, cos_sin);
      EXPECT_TRUE(same_bits(qkv, expected));
    }
  }
}

INSTANTIATE_FOR_ISAS(RowsTest);

}  // namespace
}  // namespace saccade
