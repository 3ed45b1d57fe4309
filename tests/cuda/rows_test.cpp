#include "kernels/cuda/rows.h"

#include <array>

#include "cuda/cuda_test.h"
#include "kernels/cpu/reference.h"

namespace saccade {
namespace {

namespace ref = cpu::reference;

// Distance in representable bf16 values.
int64_t bf16_steps(BFloat16 a, BFloat16 b) {
  const auto place = [](BFloat16 x) { return x.bits & 0x8000 ? -int64_t{x.bits & 0x7fff} : int64_t{x.bits}; };
  return std::abs(place(a) - place(b));
}

std::vector<int32_t> random_ints(std::mt19937& rng, size_t count, int32_t end) {
  std::vector<int32_t> values(count);
  for (auto& v : values) v = std::uniform_int_distribution<int32_t>(0, end - 1)(rng);
  return values;
}

class RowsTest : public CudaTest {
 protected:
  DeviceMemory memory;
  std::mt19937 rng{7};

  Tensor upload(const std::vector<BFloat16>& host, std::initializer_list<int64_t> shape) {
    return memory.upload(DType::kBF16, shape, host.data());
  }
  Tensor upload(const std::vector<int32_t>& host, std::initializer_list<int64_t> shape) {
    return memory.upload(DType::kI32, shape, host.data());
  }
};

TEST_F(RowsTest, GathersRowsOfAnyType) {
  const int64_t rows = 37, count = 101;
  for (const auto& [dtype, d] : std::initializer_list<std::pair<DType, int64_t>>{
           {DType::kBF16, 2048}, {DType::kBF16, 8200}, {DType::kF32, 3}, {DType::kI32, 1}, {DType::kU8, 4099}}) {
    const size_t row = static_cast<size_t>(d) * dtype_size(dtype);
    std::vector<uint8_t> host(static_cast<size_t>(rows) * row);
    for (auto& byte : host) byte = static_cast<uint8_t>(rng());
    const std::vector<int32_t> index = random_ints(rng, count, rows);
    const Tensor x = memory.upload(dtype, {rows, d}, host.data()), y = memory.poison(dtype, {count, d});
    cuda::gather_rows(nullptr, x, upload(index, {count}), y);
    const auto got = download<uint8_t>(Tensor(y.data, DType::kU8, {static_cast<int64_t>(y.bytes())}));
    for (size_t i = 0; i < index.size(); ++i)
      ASSERT_EQ(0, std::memcmp(got.data() + i * row, host.data() + static_cast<size_t>(index[i]) * row, row))
          << dtype_name(dtype) << " " << d << " row " << i;
  }
}

TEST_F(RowsTest, FetchesFromTheHost) {
  for (const int64_t count : {64, 4096, 70000}) {
    std::vector<int32_t> expected = random_ints(rng, static_cast<size_t>(count), 1000);
    int32_t *from = nullptr, *chosen = nullptr;
    cuda::check(cudaMallocHost(&from, expected.size() * sizeof(int32_t)), "pinned");
    cuda::check(cudaMallocHost(&chosen, 3 * sizeof(int32_t)), "pinned");
    std::ranges::copy(std::initializer_list<int32_t>{11, -1, 13}, chosen);
    // Negative numbers mean something among ids alone.
    expected[17] = expected[30] = -2;
    std::ranges::copy(expected, from);
    for (const auto& [at, which, id] : {std::tuple{18, 0, 11}, {20, 1, 0}, {29, 2, 13}}) {
      from[at] = -1 - which;
      expected[static_cast<size_t>(at)] = id;
    }
    const Tensor to = memory.poison(DType::kI32, {count});
    cuda::fetch(nullptr, Tensor(from, DType::kI32, {count}), to, to.slice(18, 30), Tensor(chosen, DType::kI32, {3}));
    EXPECT_EQ(download<int32_t>(to), expected);
    cudaFreeHost(from);
    cudaFreeHost(chosen);
  }
}

TEST_F(RowsTest, Embeds) {
  const int64_t vocab = 301, d = 1280, tokens = 9;
  const auto table = normal_bf16(rng, vocab * d);
  const auto ids = random_ints(rng, tokens, vocab);
  const Tensor y = memory.poison(DType::kBF16, {tokens, d});
  cuda::embed(nullptr, upload(table, {vocab, d}), upload(ids, {tokens}), y);
  const auto got = download<BFloat16>(y);
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(got[i].bits, table[static_cast<size_t>(ids[i / d] * d) + i % d].bits) << i;
}

TEST_F(RowsTest, RmsNorm) {
  for (const int64_t d : {8, 264, 1280, 2048, 3584, 8192})
    for (const int64_t rows : {1, 5}) {
      SCOPED_TRACE(fmt::format("D {} rows {}", d, rows));
      const auto xs = normal_bf16(rng, static_cast<size_t>(rows * d), 3), ws = normal_bf16(rng, static_cast<size_t>(d));
      const Tensor x = upload(xs, {rows, d}), w = upload(ws, {d}), y = memory.poison(DType::kBF16, {rows, d});
      cuda::rms_norm(nullptr, x, w, 1e-6F, y);
      const auto got = download<BFloat16>(y);
      std::vector<BFloat16> expected(got.size());
      size_t different = 0;
      for (int64_t r = 0; r < rows; ++r) ref::rms_norm(&xs[r * d], ws.data(), &expected[r * d], d, 1e-6F);
      for (size_t i = 0; i < got.size(); ++i) {
        // The sum's order may turn the first rounding, and so the product by a step, and its rounding by another.
        ASSERT_LE(bf16_steps(got[i], expected[i]), 2) << i;
        different += got[i].bits != expected[i].bits;
      }
      EXPECT_LE(different, 1 + got.size() / 200);

      const Tensor last = memory.poison(DType::kBF16, {1, d});
      cuda::rms_norm(nullptr, x.slice(rows - 1, rows), w, 1e-6F, last);
      cuda::rms_norm(nullptr, x, w, 1e-6F, x);  // in place
      const auto alone = download<BFloat16>(last), inside = download<BFloat16>(x);
      EXPECT_EQ(0, std::memcmp(alone.data(), &got[(rows - 1) * d], last.bytes()));
      EXPECT_EQ(0, std::memcmp(inside.data(), got.data(), x.bytes()));
    }
}

TEST_F(RowsTest, GeluOfEveryBf16) {
  std::vector<BFloat16> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 x{};
    x.bits = static_cast<uint16_t>(bits);
    if (std::isfinite(float(x))) values.push_back(x);
  }
  values.resize(values.size() - 3);  // not a multiple of eight
  const auto n = static_cast<int64_t>(values.size());
  const Tensor x = upload(values, {1, n}), y = memory.poison(DType::kBF16, {1, n});
  cuda::gelu(nullptr, x, y);
  const auto got = download<BFloat16>(y);
  for (size_t i = 0; i < values.size(); ++i) {
    const double exact = ref::gelu(static_cast<double>(float(values[i])));
    if (std::abs(exact) < 0x1p-126)  // in float, erfc or the product may be subnormal and lose bits
      ASSERT_LE(std::abs(float(got[i])), 0x1p-126) << float(values[i]);
    else
      ASSERT_LE(bf16_steps(got[i], BFloat16(static_cast<float>(exact))), 1) << float(values[i]);
  }
}

// cos and sin of position * frequency as the CPU's kernels make them. Theirs and the device's are within an ulp of
// double, so that they round to the same float but for about one in 2^28.
void expect_table(const std::vector<float>& got, int64_t tokens, int64_t half, bool round, auto angle) {
  size_t different = 0;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < 2 * half; ++j) {
      const double a = static_cast<double>(angle(t, j % half));
      const float exact = static_cast<float>(j < half ? std::cos(a) : std::sin(a));
      const float expected = round ? float(BFloat16(exact)) : exact, found = got[t * 2 * half + j];
      ASSERT_NEAR(found, expected, std::abs(expected) * (round ? 0x1p-7 : 0x1p-23)) << t << " " << j;
      different += found != expected;
    }
  EXPECT_LE(different, 1u);
}

float frequency(double theta, int64_t j, int64_t count) {
  return 1.0F / static_cast<float>(std::pow(theta, static_cast<double>(j) / static_cast<double>(count)));
}

TEST_F(RowsTest, RopeTables) {
  const int64_t tokens = 77;
  for (const auto& sections : {std::vector<int64_t>{16, 24, 24}, std::vector<int64_t>{32}, std::vector<int64_t>{64}}) {
    const auto axes = static_cast<int64_t>(sections.size());
    const auto positions = random_ints(rng, static_cast<size_t>(axes * tokens), 128000);
    std::vector<int64_t> axis;
    for (int64_t a = 0; a < axes; ++a) axis.insert(axis.end(), static_cast<size_t>(sections[a]), a);
    const auto half = static_cast<int64_t>(axis.size());
    const Tensor y = memory.poison(DType::kF32, {tokens, 2, half});
    cuda::rope_table(nullptr, upload(positions, {axes, tokens}), sections, 1e6, y);
    expect_table(download<float>(y), tokens, half, true, [&](int64_t t, int64_t j) {
      return static_cast<float>(positions[axis[j] * tokens + t]) * frequency(1e6, j, half);
    });
  }
  const int64_t half = 40;
  const auto positions = random_ints(rng, 2 * tokens, 200);
  const Tensor y = memory.poison(DType::kF32, {tokens, 2, half});
  cuda::vision_rope_table(nullptr, upload(positions, {2, tokens}), 1e4, y);
  expect_table(download<float>(y), tokens, half, false, [&](int64_t t, int64_t j) {
    return static_cast<float>(positions[(j < 20 ? 0 : 1) * tokens + t]) * frequency(1e4, j % 20, 20);
  });
}

TEST_F(RowsTest, QkvRopeAppend) {
  struct Shape {
    int64_t heads, kv_heads, dim;
  };
  for (const auto [heads, kv_heads, dim] : {Shape{16, 2, 128}, Shape{7, 1, 64}, Shape{2, 2, 192}}) {
    SCOPED_TRACE(dim);
    const int64_t tokens = 70, pages = 3, all = heads + 2 * kv_heads, half = dim / 2;
    const auto plain = normal_bf16(rng, static_cast<size_t>(tokens * all * dim));
    std::vector<float> cos_sin(static_cast<size_t>(tokens * dim));
    for (auto& v : cos_sin) v = float(BFloat16(std::uniform_real_distribution<float>(-1, 1)(rng)));
    std::vector<int32_t> slots(static_cast<size_t>(pages * cuda::kKvPageTokens));
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
    std::shuffle(slots.begin(), slots.end(), rng);
    slots.resize(static_cast<size_t>(tokens));

    const auto paired = [&](int64_t i) { return cuda::paired_row(i % half, i >= half); };
    std::vector<BFloat16> qkv = plain, q(static_cast<size_t>(tokens * heads * dim)), turned(static_cast<size_t>(dim));
    std::vector<BFloat16> kv(static_cast<size_t>(pages * 2 * kv_heads * cuda::kKvPageTokens * dim));
    std::memset(static_cast<void*>(kv.data()), 0xff, kv.size() * sizeof(BFloat16));
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < all; ++h) {
        const BFloat16* from = &plain[(t * all + h) * dim];
        const bool turns = h < heads + kv_heads;
        if (turns) ref::rope<true>(from, &cos_sin[t * dim], turned.data(), dim);
        for (int64_t i = 0; i < dim; ++i) {
          const int64_t place = turns ? paired(i) : i, slot = slots[t];
          qkv[(t * all + h) * dim + place] = from[i];
          if (h < heads)
            q[(t * heads + h) * dim + place] = turned[i];
          else  // k and v heads follow each other in a page as they do in qkv
            kv[(slot / 64 * 2 * kv_heads + h - heads) * 64 * dim + cuda::kv_offset(slot % 64, place)] =
                turns ? turned[i] : from[i];
        }
      }
    const Tensor kv_layer = memory.poison(DType::kBF16, {pages, 2, kv_heads, 64, dim});
    const Tensor out = memory.poison(DType::kBF16, {tokens, heads, dim});
    cuda::qkv_rope_append(nullptr, upload(qkv, {tokens, all * dim}),
                          memory.upload(DType::kF32, {tokens, 2, half}, cos_sin.data()), upload(slots, {tokens}),
                          kv_layer, out);
    const auto got = download<BFloat16>(out), got_kv = download<BFloat16>(kv_layer);
    for (size_t i = 0; i < q.size(); ++i) ASSERT_EQ(got[i].bits, q[i].bits) << i;
    for (size_t i = 0; i < kv.size(); ++i) ASSERT_EQ(got_kv[i].bits, kv[i].bits) << i;
  }
}

TEST_F(RowsTest, ToStrips) {
  struct Case {
    int64_t rows, cols, first, group;
  };
  for (const auto [rows, cols, first, group] :
       {Case{16, 64, 0, 0}, Case{50, 1176, 5, 0}, Case{17, 3420, 0, 0}, Case{9, 131, 3, 0}, Case{256, 1000, 128, 128},
        Case{3420, 72, 0, 6840}, Case{3420, 72, 3420, 6840}, Case{40, 64, 40, 80}})
    for (const int64_t shift : {0, 1}) {
      SCOPED_TRACE(fmt::format("{} x {} first {} group {} shift {}", rows, cols, first, group, shift));
      const auto w = normal_bf16(rng, static_cast<size_t>(rows * cols));
      std::vector<int64_t> order(static_cast<size_t>(rows));
      for (int64_t n = 0; n < rows; ++n) {
        const int64_t at = first + n;
        order[n] =
            group == 0 ? at : at / group * group + cuda::paired_row(at % group % (group / 2), at % group >= group / 2);
      }
      const int64_t most = *std::max_element(order.begin(), order.end()) + 1;
      const Tensor expected = strips_of_host(memory, w, most, cols, order).data[0];
      const Tensor out = memory.zeros(DType::kBF16, {expected.dim(0), expected.dim(1), expected.dim(2)});
      std::vector<BFloat16> shifted(static_cast<size_t>(shift));
      shifted.insert(shifted.end(), w.begin(), w.end());
      Tensor from(upload(shifted, {rows * cols + shift}).as<BFloat16>() + shift, DType::kBF16, {rows, cols});
      cuda::to_strips(nullptr, from, first, group, out);
      const auto got = download<uint16_t>(out), want = download<uint16_t>(expected);
      ASSERT_EQ(got, want);
    }
}

}  // namespace
}  // namespace saccade
