// Times segment_attention, rope included, in the shapes of Qwen2.5-VL's vision tower: us per call, as the median of
// graphs of calls that rotate over several inputs (so that they come from memory, not from the L2 cache). An argument
// selects the shapes that have it in their names; a second one, warm, keeps to one input.
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.cuh"
#include "tensor/tensor.h"

using namespace saccade;

namespace {

constexpr int64_t kHeads = 16, kDim = 80;
constexpr double kFlops = 790e12, kBytesPerSecond = 4.65e12;

void* device(size_t bytes) {
  void* p = nullptr;
  cuda::check(cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}

struct Input {
  Tensor qkv, cos_sin, ends, y;
  Input(int64_t rows, const std::vector<int32_t>& host_ends, const std::vector<BFloat16>& values)
      : qkv(device(static_cast<size_t>(rows * 3 * kHeads * kDim * 2)), DType::kBF16, {rows, 3, kHeads, kDim}),
        cos_sin(device(static_cast<size_t>(rows * kDim * 4)), DType::kF32, {rows, 2, kDim / 2}),
        ends(device(host_ends.size() * 4), DType::kI32, {static_cast<int64_t>(host_ends.size())}),
        y(device(static_cast<size_t>(rows * kHeads * kDim * 2)), DType::kBF16, {rows, kHeads * kDim}) {
    // Turning by these angles many times keeps the sizes of q and k.
    std::vector<float> turns(static_cast<size_t>(cos_sin.numel()));
    for (size_t i = 0; i < turns.size(); ++i) turns[i] = i / (kDim / 2) % 2 ? 0.6f : 0.8f;
    cuda::check(cudaMemcpy(qkv.data, values.data(), qkv.bytes(), cudaMemcpyHostToDevice), "upload");
    cuda::check(cudaMemcpy(cos_sin.data, turns.data(), cos_sin.bytes(), cudaMemcpyHostToDevice), "upload");
    cuda::check(cudaMemcpy(ends.data, host_ends.data(), ends.bytes(), cudaMemcpyHostToDevice), "upload");
  }
  Input(const Input&) = delete;
  ~Input() {
    for (void* p : {qkv.data, cos_sin.data, ends.data, y.data}) cudaFree(p);
  }
};

struct Options {
  std::string chosen;
  bool warm = false;
};

void bench(const Options& options, const std::string& name, const std::vector<int32_t>& lengths) {
  if (name.find(options.chosen) == std::string::npos) return;
  std::vector<int32_t> ends{0};
  int64_t longest = 0;
  double flops = 0;
  for (const int32_t length : lengths) {
    ends.push_back(ends.back() + length);
    longest = std::max<int64_t>(longest, length);
    flops += 4.0 * kHeads * kDim * length * length;
  }
  const int64_t rows = ends.back();
  const double bytes = 8.0 * static_cast<double>(rows) * kHeads * kDim;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> values(static_cast<size_t>(rows * 3 * kHeads * kDim), BFloat16(0.0f));
  for (auto& v : values) v = BFloat16(normal(rng));
  const int copies = options.warm ? 1 : static_cast<int>(200e6 / bytes) + 2, calls = std::max(3 * copies, 12);
  std::vector<Input*> inputs;
  for (int i = 0; i < copies; ++i) inputs.push_back(new Input(rows, ends, values));

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t start, stop;
  cuda::check(cudaStreamCreate(&stream), "stream");
  cuda::check(cudaEventCreate(&start), "event");
  cuda::check(cudaEventCreate(&stop), "event");
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < calls; ++i) {
    const Input& in = *inputs[static_cast<size_t>(i % copies)];
    cuda::segment_attention(stream, in.qkv, in.cos_sin, in.ends, longest, 0.1118034f, in.y);
  }
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  std::vector<float> times;
  for (int i = 0; i < 15; ++i) {
    cuda::check(cudaEventRecord(start, stream), "event");
    cuda::check(cudaGraphLaunch(executable, stream), "launch");
    cuda::check(cudaEventRecord(stop, stream), "event");
    cuda::check(cudaStreamSynchronize(stream), "run");
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, start, stop), "event");
    if (i >= 3) times.push_back(ms * 1e3f / static_cast<float>(calls));
  }
  std::sort(times.begin(), times.end());
  const double us = times[times.size() / 2], floor = std::max(flops / kFlops, bytes / kBytesPerSecond) * 1e6;
  std::printf("%-28s %8.1f us  %6.0f TFLOP/s  %5.2f TB/s  %3.0f%% of bound\n", name.c_str(), us, flops / us / 1e6,
              bytes / us / 1e6, 100 * floor / us);
  cuda::check(cudaGraphExecDestroy(executable), "graph");
  cuda::check(cudaGraphDestroy(graph), "graph");
  cuda::check(cudaEventDestroy(start), "event");
  cuda::check(cudaEventDestroy(stop), "event");
  cuda::check(cudaStreamDestroy(stream), "stream");
  for (Input* in : inputs) delete in;
}

std::vector<int32_t> windows(int32_t rows, int32_t columns) {
  std::vector<int32_t> lengths;
  for (int32_t r = 0; r < rows; r += 8)
    for (int32_t c = 0; c < columns; c += 8) lengths.push_back(std::min(8, rows - r) * std::min(8, columns - c));
  return lengths;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options{argc > 1 ? argv[1] : "", argc > 2};
  bench(options, "full, photo of 54x72", {3888});
  bench(options, "full, 14 frames of 20x36", std::vector<int32_t>(14, 720));
  bench(options, "full, 100x100", {10000});
  bench(options, "windows of 54x72", windows(54, 72));
  std::vector<int32_t> frames;
  for (int i = 0; i < 14; ++i)
    for (const int32_t length : windows(20, 36)) frames.push_back(length);
  bench(options, "windows, 14 frames of 20x36", frames);
  bench(options, "windows of 100x100", windows(100, 100));
}
