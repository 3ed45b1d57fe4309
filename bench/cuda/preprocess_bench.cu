// Times the way from decoded pixels to patches on the device.
//
//   cuda_preprocess_bench
//
// Medians over CUDA graphs of kRepeats runs; the bound counts the bytes every pass reads and writes at 4.65 TB/s.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/preprocess.h"
#include "media/resample.h"

namespace {

using namespace saccade;

constexpr int kRepeats = 20, kRounds = 30;

Tensor device(DType dtype, std::initializer_list<int64_t> shape, const void* from = nullptr) {
  Tensor t(nullptr, dtype, shape);
  cuda::check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  if (from) cuda::check(cudaMemcpy(t.data, from, t.bytes(), cudaMemcpyHostToDevice), "upload");
  return t;
}

cuda::ResizeAxis axis(int in, int out) {
  const media::Resampling plan = media::bicubic_resampling(in, out);
  return {device(DType::kI32, {out}, plan.first.data()), device(DType::kI32, {out, plan.taps}, plan.weights.data())};
}

// Microseconds of one run.
double median_us(cudaStream_t stream, const std::function<void()>& fn) {
  fn();
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < kRepeats; ++i) fn();
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < kRounds; ++i) {
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(exec, stream);
    cudaEventRecord(end, stream);
    cuda::check(cudaStreamSynchronize(stream), "run");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(1e3 * static_cast<double>(ms) / kRepeats);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void measure(cudaStream_t stream, const char* name, int frames, int w, int h, int ow, int oh) {
  std::mt19937 rng(1);
  std::vector<uint8_t> noise(static_cast<size_t>(frames) * static_cast<size_t>(w) * static_cast<size_t>(h) * 3);
  // Neighbours of a photo are alike, which the table of grey levels notices.
  for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<uint8_t>(i / 40 + rng() % 8);
  constexpr int kPatch = 14, kMerge = 2, kTemporal = 2;
  const Tensor rgb = device(DType::kU8, {frames, h, w, 3}, noise.data());
  const Tensor scratch = device(DType::kU8, {frames, h, ow, 3}), out = device(DType::kU8, {frames, oh, ow, 3});
  const cuda::ResizeAxis x = axis(w, ow), y = axis(h, oh);
  const Tensor levels = device(DType::kBF16, {3, 256}, std::vector<uint16_t>(768).data());
  const int64_t rows = (frames + 1) / kTemporal * (oh / kPatch) * (ow / kPatch);
  const Tensor patches = device(DType::kBF16, {rows, 3 * kTemporal * kPatch * kPatch});
  const auto resize = [&] { cuda::resize_bicubic(stream, rgb, x, y, scratch, out); };
  const auto patchify = [&] { cuda::patchify(stream, out, levels, kPatch, kMerge, kTemporal, {}, patches); };
  const auto both = [&] {
    resize();
    patchify();
  };
  const auto report = [&](const char* part, double bytes, const std::function<void()>& fn) {
    const double us = median_us(stream, fn), bound = bytes / 4.65e6;
    std::printf("%-32s %-8s %8.2f us  bound %6.2f us  %3.0f%%\n", name, part, us, bound, 100 * bound / us);
  };
  const auto size = [](const Tensor& t) { return static_cast<double>(t.bytes()); };
  const double resized = size(rgb) + 2 * size(scratch) + size(out), patched = size(out) + size(patches);
  report("resize", resized, resize);
  report("patches", patched, patchify);
  report("both", resized + patched, both);
}

}  // namespace

int main() {
  try {
    cudaStream_t stream;
    cuda::check(cudaStreamCreate(&stream), "stream");
    measure(stream, "photo 1000x747 -> 1008x756", 1, 1000, 747, 1008, 756);
    measure(stream, "photo 4000x3000 -> 3612x2716", 1, 4000, 3000, 3612, 2716);
    measure(stream, "28 frames 640x360 -> 504x280", 28, 640, 360, 504, 280);
  } catch (const Error& error) {
    std::fprintf(stderr, "cuda_preprocess_bench: %s\n", error.what());
    return 1;
  }
}
