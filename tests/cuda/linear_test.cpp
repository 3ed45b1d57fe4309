#include "kernels/cuda/linear.h"

#include "cuda/cuda_test.h"

namespace saccade {
namespace {

using cuda::LinearOut;

float rounded(float v) { return float(BFloat16(v)); }

class Linear : public CudaTest {
 protected:
  struct Job {
    int64_t t, n, k;
    LinearOut out = LinearOut::kStore;
    bool bias = false;
    int64_t w_cols = 0;  // more than k: padding
  };

  // Host values, and y as the kernel left it.
  struct Result {
    std::vector<BFloat16> x, w, bias, before;
    std::vector<double> y;
  };

  Result run(const Job& job) {
    const int64_t w_cols = std::max(job.w_cols, job.k);
    Result r;
    r.x = normal_bf16(rng_, static_cast<size_t>(job.t * job.k));
    r.w = normal_bf16(rng_, static_cast<size_t>(job.n * w_cols), 1 / std::sqrt(static_cast<float>(job.k)));
    if (job.bias) r.bias = normal_bf16(rng_, static_cast<size_t>(job.n));
    const int64_t width = job.out == LinearOut::kGateUpSilu ? job.n / 2 : job.n;
    if (job.out == LinearOut::kAdd) r.before = normal_bf16(rng_, static_cast<size_t>(job.t * width));
    r.y = on_device(r, job.t, job.n, job.k, job.out, w_cols);
    return r;
  }

  // y of the first t rows.
  std::vector<double> on_device(const Result& r, int64_t t, int64_t n, int64_t k, LinearOut out, int64_t w_cols) {
    DeviceMemory memory;
    Weight w = strips_of_host(memory, r.w, n, w_cols);
    if (!r.bias.empty()) w.bias[0] = memory.upload(DType::kBF16, {n}, r.bias.data());
    const Tensor x = memory.upload(DType::kBF16, {t, k}, r.x.data());
    const int64_t width = out == LinearOut::kGateUpSilu ? n / 2 : n;
    const DType dtype = out == LinearOut::kFloat ? DType::kF32 : DType::kBF16;
    // Rows after the last are poison and must stay so.
    const Tensor all = memory.poison(dtype, {t + 3, width});
    const Tensor y = all.slice(0, t);
    if (out == LinearOut::kAdd)
      cuda::check(cudaMemcpy(y.data, r.before.data(), y.bytes(), cudaMemcpyHostToDevice), "upload");
    cuda::linear(nullptr, x, w, y, out);
    for (const double v : download_doubles(all.slice(t, t + 3))) EXPECT_TRUE(std::isnan(v));
    return download_doubles(y);
  }

  std::vector<double> expected(const Job& job, const Result& r) {
    const size_t n = static_cast<size_t>(job.n), k = static_cast<size_t>(job.k);
    const size_t w_cols = static_cast<size_t>(std::max(job.w_cols, job.k));
    std::vector<double> w(n * k), sums(n);  // transposed
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < k; ++j) w[j * n + i] = static_cast<double>(float(r.w[i * w_cols + j]));
    std::vector<float> row(n);
    std::vector<double> y;
    for (size_t t = 0; t < static_cast<size_t>(job.t); ++t) {
      for (size_t i = 0; i < n; ++i) sums[i] = r.bias.empty() ? 0.0 : static_cast<double>(float(r.bias[i]));
      for (size_t j = 0; j < k; ++j) {
        const auto x = static_cast<double>(float(r.x[t * k + j]));
        for (size_t i = 0; i < n; ++i) sums[i] += x * w[j * n + i];
      }
      for (size_t i = 0; i < n; ++i) row[i] = rounded(static_cast<float>(sums[i]));
      if (job.out == LinearOut::kGateUpSilu) {
        for (int64_t i = 0; i < job.n / 2; ++i) {
          const float gate = row[static_cast<size_t>(cuda::paired_row(i, 0))];
          const float up = row[static_cast<size_t>(cuda::paired_row(i, 1))];
          y.push_back(static_cast<double>(rounded(rounded(gate / (1 + std::exp(-gate))) * up)));
        }
      } else {
        for (size_t i = 0; i < n; ++i)
          y.push_back(static_cast<double>(r.before.empty() ? row[i] : rounded(float(r.before[t * n + i]) + row[i])));
      }
    }
    return y;
  }

  // Sums in float differ from sums in double by far less than a rounding to bf16 (2^-9), so values differ where the
  // rounding falls the other way: seldom, and by one step; two roundings for gates. Every single value is held to steps
  // of its own size, or of the terms that cancel.
  void check(const Job& job) {
    SCOPED_TRACE(testing::Message() << "T=" << job.t << " N=" << job.n << " K=" << job.k
                                    << " out=" << static_cast<int>(job.out) << " bias=" << job.bias);
    const Result r = run(job);
    const std::vector<double> want = expected(job, r);
    ASSERT_EQ(r.y.size(), want.size());
    EXPECT_LE(relative_error(r.y, want), 0x1p-9);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_LE(std::abs(r.y[i] - want[i]), std::max(std::abs(want[i]), 1.0) * 0x1p-6) << "at " << i;
  }

  std::mt19937 rng_{std::random_device{}()};
};

constexpr LinearOut kAll[] = {LinearOut::kStore, LinearOut::kAdd, LinearOut::kFloat, LinearOut::kGateUpSilu};

TEST_F(Linear, ShapesOfTheTinyModel) {
  for (const int64_t t : {1, 2, 7, 33, 64, 65, 129, 300})
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{256, 192}, {448, 256}, {512, 448}, {1024, 512}})
      check({t, n, k, kAll[(t + n / 64) % 4], t % 2 == 0});
}

TEST_F(Linear, EveryOutputWithAndWithoutBias) {
  for (const LinearOut out : kAll)
    for (const bool bias : {false, true}) {
      check({70, 256, 192, out, bias});
      check({300, 768, 320, out, bias});
    }
}

TEST_F(Linear, TailsOfRowsColumnsAndK) {
  for (const LinearOut out : kAll) {
    check({37, 272, 1176, out, true});
    check({200, 400, 72, out, true});
    check({389, 1296, 136, out});
  }
  check({67, 264, 200, LinearOut::kAdd});
}

TEST_F(Linear, WidthsAndColumnsThatAreNoPieces) {
  check({45, 131, 66});
  check({45, 131, 66, LinearOut::kAdd, true});
  check({45, 131, 70, LinearOut::kFloat, true});
  check({150, 48, 130, LinearOut::kGateUpSilu, true});
  check({3, 2, 2});
}

TEST_F(Linear, PaddedColumnsOfTheWeights) {
  check({50, 160, 120, LinearOut::kStore, false, 192});
  check({200, 320, 200, LinearOut::kAdd, false, 384});
}

// Sizes at which the choice of tiles differs.
TEST_F(Linear, LargeShapes) {
  for (const int64_t n : {1280, 2560, 4608, 5120}) check({517, n, 128, LinearOut::kStore, true});
  check({997, 5504, 128, LinearOut::kGateUpSilu});
  check({520, 6144, 1088, LinearOut::kAdd});  // several tiles for a CTA, longer than its ring
}

TEST_F(Linear, RowsDoNotDependOnTheirNumber) {
  for (const LinearOut out : kAll) {
    const Job job{1300, 1152, 704, out, true};
    const Result all = run(job);
    const size_t width = all.y.size() / static_cast<size_t>(job.t);
    for (const int64_t t : {1, 8, 40, 64, 100, 128, 200, 500, 997}) {
      const std::vector<double> some = on_device(all, t, job.n, job.k, out, job.k);
      ASSERT_EQ(some.size(), static_cast<size_t>(t) * width);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.y.begin())) << "T=" << t << " out=" << static_cast<int>(out);
    }
  }
}

TEST_F(Linear, NoRows) {
  DeviceMemory memory;
  const Weight w = strips_of_host(memory, std::vector<BFloat16>(64 * 64, BFloat16(1.0f)), 64, 64);
  const Tensor x = memory.poison(DType::kBF16, {0, 64}), y = memory.poison(DType::kBF16, {0, 64});
  cuda::linear(nullptr, x, w, y, LinearOut::kStore);
  cuda::check(cudaDeviceSynchronize(), "linear");
}

}  // namespace
}  // namespace saccade
