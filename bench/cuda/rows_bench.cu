// Times operations on rows: medians of replays of a CUDA graph of kCalls calls over rotating memory, beside the bytes
// that each must move at 4.65 TB/s (H200).
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "graph_timing.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/rows.h"

namespace saccade {
namespace {

constexpr double kBytesPerSecond = 4.65e12;
constexpr int kCalls = 24;
constexpr size_t kPool = size_t{3} << 30;

// Memory full of small normal bf16 values, given out in turns so that nothing is found in a cache.
class Pool {
 public:
  Pool() {
    cuda::check(cudaMalloc(reinterpret_cast<void**>(&data_), kPool), "cudaMalloc");
    std::mt19937 rng{1};
    std::normal_distribution<float> normal;
    std::vector<BFloat16> some(1 << 22);
    for (auto& v : some) v = BFloat16(normal(rng));
    for (size_t at = 0; at < kPool; at += some.size() * 2)
      cuda::check(cudaMemcpy(data_ + at, some.data(), some.size() * 2, cudaMemcpyHostToDevice), "fill");
  }
  Tensor get(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor t(data_, dtype, shape);
    const size_t bytes = (t.bytes() + 255) / 256 * 256;
    if (at_ + bytes > kPool) at_ = 0;
    t.data = data_ + at_;
    at_ += bytes;
    return t;
  }

 private:
  std::byte* data_ = nullptr;
  size_t at_ = 0;
};

void run() {
  Pool pool;
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "stream");
  const auto report = [&](const std::string& what, double bytes, const std::function<void()>& call,
                          int calls = kCalls) {
    const double us = graph_median_us(stream, calls, call), bound = 1e6 * bytes / kBytesPerSecond;
    fmt::print("{:<34} {:>9.2f} us {:>9.2f} us bound {:>4.0f}%\n", what, us, bound, 100 * bound / us);
  };
  const auto bf16 = [&](std::initializer_list<int64_t> shape) { return pool.get(DType::kBF16, shape); };
  Tensor small(nullptr, DType::kI32, {3, 8192});  // ids, positions or slots, all within any table
  std::vector<int32_t> numbers(3 * 8192);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int32_t>(i % 8192);
  cuda::check(cudaMalloc(&small.data, small.bytes()), "cudaMalloc");
  cuda::check(cudaMemcpy(small.data, numbers.data(), small.bytes(), cudaMemcpyHostToDevice), "upload");
  const auto indices = [&](int64_t n) { return Tensor(small.data, DType::kI32, {n}); };

  const Tensor table = bf16({151936, 2048});
  for (const int64_t t : {1, 997, 4096}) {
    const auto row = static_cast<double>(t);
    report(fmt::format("embed {} x 2048", t), row * 2 * 4096, [&] {
      cuda::embed(stream, table, indices(t), bf16({t, 2048}));
    });
    for (const int64_t d : {2048, 3584})
      report(fmt::format("rms_norm {} x {}", t, d), row * 4 * static_cast<double>(d), [&] {
        cuda::rms_norm(stream, bf16({t, d}), bf16({d}), 1e-6F, bf16({t, d}));
      });
    const std::vector<int64_t> sections = {16, 24, 24};
    report(fmt::format("rope_table {}", t), row * (12 + 512), [&] {
      cuda::rope_table(stream, Tensor(small.data, DType::kI32, {3, t}), sections, 1e6,
                       pool.get(DType::kF32, {t, 2, 64}));
    });
    for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{16, 2}, {28, 4}})
      report(fmt::format("qkv_rope_append {} x {}+2*{}", t, heads, kv_heads),
             row * static_cast<double>(4 * 128 * (heads + 2 * kv_heads) + 512), [&] {
               cuda::qkv_rope_append(stream, bf16({t, (heads + 2 * kv_heads) * 128}), pool.get(DType::kF32, {t, 2, 64}),
                                     indices(t), bf16({64, 2, kv_heads, 64, 128}), bf16({t, heads, 128}));
             });
  }
  report("rms_norm 3888 x 1280", 3888.0 * 4 * 1280, [&] {
    cuda::rms_norm(stream, bf16({3888, 1280}), bf16({1280}), 1e-6F, bf16({3888, 1280}));
  });
  report("gelu 972 x 5120", 972.0 * 4 * 5120, [&] { cuda::gelu(stream, bf16({972, 5120}), bf16({972, 5120})); });
  report("vision_rope_table 3888", 3888.0 * (8 + 320), [&] {
    cuda::vision_rope_table(stream, Tensor(small.data, DType::kI32, {2, 3888}), 1e4,
                            pool.get(DType::kF32, {3888, 2, 40}));
  });
  struct Matrix {
    int64_t rows, cols, group;
  };
  for (const auto [n, k, group] : {Matrix{152064, 3584, 0}, Matrix{18944, 3584, 2 * 18944}, Matrix{3584, 18944, 0},
                                   Matrix{2048, 2048, 128}, Matrix{1280, 3420, 0}, Matrix{1280, 1176, 0}})
    report(
        fmt::format("to_strips {} x {} group {}", n, k, group), static_cast<double>(n * k) * 4,
        [&] {
          const int64_t rows = std::max(n, group);
          cuda::to_strips(stream, bf16({n, k}), 0, group,
                          bf16({cuda::strips_of(rows), cuda::blocks_of(k), cuda::kBlockElements}));
        },
        4);
}

}  // namespace
}  // namespace saccade

int main() { saccade::run(); }
