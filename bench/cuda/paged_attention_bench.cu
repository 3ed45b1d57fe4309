// Time of paged_attention for prompts and chunks of them: median of many launches in a row, events around each batch.
// Operations are those of visible keys: 4 Dh for each (row, key).
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {
namespace {

constexpr int64_t kDh = 128;
constexpr double kPeak = 790e12;

__global__ void fill(bf16* x, int64_t n) {  // roughly normal
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t h = static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {
      h = (h ^ h >> 29) * 0xbf58476d1ce4e5b9;
      sum += static_cast<float>(h >> 40) / (1 << 24) - 0.5f;
    }
    x[i] = __float2bfloat16(sum * 1.7f);
  }
}
Tensor random_tensor(std::initializer_list<int64_t> shape) {
  Tensor t(nullptr, DType::kBF16, shape);
  check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  fill<<<1024, 256>>>(static_cast<bf16*>(t.data), t.numel());
  return t;
}
Tensor upload(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  Tensor t(nullptr, DType::kI32, shape);
  check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  check(cudaMemcpy(t.data, values.data(), t.bytes(), cudaMemcpyHostToDevice), "upload");
  return t;
}

void measure(const char* model, int64_t heads, int64_t kv_heads, int64_t sequences, int64_t rows, int64_t past) {
  const int64_t length = rows + past, max_pages = (length + kKvPageTokens - 1) / kKvPageTokens;
  std::vector<int32_t> offsets, lengths, table;
  for (int64_t b = 0; b <= sequences; ++b) offsets.push_back(static_cast<int32_t>(b * rows));
  lengths.assign(static_cast<size_t>(sequences), static_cast<int32_t>(length));
  for (int64_t i = 0; i < sequences * max_pages; ++i) table.push_back(static_cast<int32_t>(i));
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  Paged kv{.q_offsets = upload(offsets, {sequences + 1}),
           .kv_lens = upload(lengths, {sequences}),
           .page_table = upload(table, {sequences, max_pages}),
           .longest_q = rows,
           .longest_kv = length};
  const Tensor q = random_tensor({sequences * rows, heads, kDh}), y = random_tensor({sequences * rows, heads * kDh});
  const Tensor cache = random_tensor({sequences * max_pages, 2, kv_heads, kKvPageTokens, kDh});
  const auto launch = [&](int times) {
    for (int i = 0; i < times; ++i) paged_attention(nullptr, q, cache, kv, 0.08838834764f, y);
  };
  const double flops = 4.0 * kDh * static_cast<double>(heads * sequences * rows) * (past + (rows + 1) / 2.0);
  const int times = std::max(2, static_cast<int>(2e-3 / (flops / 4e14 + 8e-6)));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  launch(times);
  std::vector<float> ms;
  for (int i = 0; i < 15; ++i) {
    check(cudaEventRecord(begin), "event");
    launch(times);
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "paged_attention");
    float t = 0;
    check(cudaEventElapsedTime(&t, begin, end), "event");
    ms.push_back(t / static_cast<float>(times));
  }
  std::sort(ms.begin(), ms.end());
  const double seconds = static_cast<double>(ms[ms.size() / 2]) / 1e3;
  std::printf("%-3s B %2d rows %5d past %5d  %9.1f us  %6.1f TFLOP/s  %5.1f%%\n", model, static_cast<int>(sequences),
              static_cast<int>(rows), static_cast<int>(past), seconds * 1e6, flops / seconds / 1e12,
              100 * flops / seconds / kPeak);
  for (const Tensor& t : {q, y, cache, kv.q_offsets, kv.kv_lens, kv.page_table}) cudaFree(t.data);
}

}  // namespace
}  // namespace saccade::cuda

int main() {
  using saccade::cuda::measure;
  struct Case {
    int64_t sequences, rows, past;
  };
  for (const Case c : {Case{1, 997, 0},
                       {1, 2545, 0},
                       {1, 3269, 0},
                       {1, 8192, 0},
                       {1, 16384, 0},
                       {8, 997, 0},
                       {1, 512, 8192},
                       {1, 512, 30000},
                       {1, 2048, 2048},
                       {1, 2048, 30000},
                       {1, 64, 8192},
                       {1, 1, 4096},
                       {64, 1, 4096}}) {
    measure("3B", 16, 2, c.sequences, c.rows, c.past);
    measure("7B", 28, 4, c.sequences, c.rows, c.past);
  }
}
