// Times the choice of the next token over Qwen2.5-VL's vocabulary: medians of replays of a CUDA graph of kCalls calls.
// Logits are in the L2 cache, where a model leaves them, as far as it holds them.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <vector>

#include "graph_timing.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/sampling.h"

namespace saccade {
namespace {

constexpr int64_t kVocab = 151936, kMostRows = 64;
constexpr int kCalls = 20;

Tensor upload(DType dtype, std::initializer_list<int64_t> shape, const void* host) {
  Tensor t(nullptr, dtype, shape);
  cuda::check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  cuda::check(cudaMemcpy(t.data, host, t.bytes(), cudaMemcpyHostToDevice), "upload");
  return t;
}

void run() {
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "stream");
  std::mt19937 rng{1};
  std::normal_distribution<float> normal;
  const auto logits_of = [&](bool peaked, bool rounded) {
    std::vector<float> x(static_cast<size_t>(kMostRows * kVocab));
    for (auto& v : x) v = 2.5F * normal(rng);
    for (size_t r = 0; peaked && r < kMostRows; ++r)
      for (int i = 0; i < 200; ++i) x[r * kVocab + rng() % kVocab] = 13 + 3 * normal(rng);
    for (auto& v : x) v = rounded ? float(BFloat16(v)) : v;
    return upload(DType::kF32, {kMostRows, kVocab}, x.data());
  };
  const Tensor peaked = logits_of(true, true), flat = logits_of(false, true), floats = logits_of(false, false);
  const std::vector<uint32_t> bits(static_cast<size_t>(kMostRows * kVocab / 32), 0x01010101);
  const Tensor seen = upload(DType::kI32, {kMostRows, kVocab / 32}, bits.data());
  Tensor ids(nullptr, DType::kI32, {kMostRows});
  cuda::check(cudaMalloc(&ids.data, ids.bytes()), "cudaMalloc");

  Tensor workspace(nullptr, DType::kU8, {static_cast<int64_t>(cuda::sample_workspace_bytes(kMostRows, kVocab))});
  if (workspace.bytes() > 0) cuda::check(cudaMalloc(&workspace.data, workspace.bytes()), "cudaMalloc");

  struct Case {
    const char* name;
    cuda::SampleRow row;
  };
  const Case cases[] = {
      {"greedy", {}},
      {"all", {.temperature = 1}},
      {"top-k 50", {.temperature = 1, .top_k = 50}},
      {"top-p 0.9", {.temperature = 1, .top_p = 0.9F}},
      {"top-k 50, top-p 0.9", {.temperature = 1, .top_p = 0.9F, .top_k = 50}},
      {"min-p 0.05", {.temperature = 1, .min_p = 0.05F}},
      {"penalty 1.05", {.temperature = 1, .repetition_penalty = 1.05F, .seen_row = 0}},
      {"penalty, k 20, p 0.8",
       {.temperature = 0.7F, .top_p = 0.8F, .repetition_penalty = 1.05F, .top_k = 20, .seen_row = 0}},
  };
  fmt::print("us; logits peaked, flat (both rounded to bf16), flat floats\n{:<22}", "rows");
  for (const int r : {1, 8, 64}) fmt::print(" | {:>23}", r);
  fmt::print("\n");
  for (const auto& [name, row] : cases) {
    std::vector<cuda::SampleRow> rows(static_cast<size_t>(kMostRows), row);
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].seed = r;
      if (row.seen_row >= 0) rows[r].seen_row = static_cast<int32_t>(r);
    }
    const Tensor params =
        upload(DType::kU8, {static_cast<int64_t>(rows.size() * sizeof(cuda::SampleRow))}, rows.data());
    fmt::print("{:<22}", name);
    for (const int64_t r : {1, 8, 64}) {
      fmt::print(" |");
      for (const Tensor& logits : {peaked, flat, floats})
        fmt::print(" {:>7.2f}", graph_median_us(stream, kCalls, [&] {
                     cuda::sample(stream, logits.slice(0, r), static_cast<const cuda::SampleRow*>(params.data), seen,
                                  row.temperature == 0, workspace, ids.slice(0, r), ids.slice(0, r));
                   }));
    }
    fmt::print("\n");
  }
}

}  // namespace
}  // namespace saccade

int main() { saccade::run(); }
