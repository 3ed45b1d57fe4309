// Times saccade::cuda::linear over the layers of Qwen2.5-VL, beside cublasLt where the environment variable CUBLASLT
// names its library. Each measure is a CUDA graph of several copies of a layer, whose weights together exceed the L2
// cache several times; the median of replays.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {
namespace {

__device__ uint32_t mix(uint32_t v) {
  v = (v ^ (v >> 16)) * 0x7feb352d;
  v = (v ^ (v >> 15)) * 0x846ca68b;
  return v ^ (v >> 16);
}
// Roughly normal: the sum of four bytes.
__global__ void fill(bf16* to, int64_t count, float sigma, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t r = mix(static_cast<uint32_t>(i) * 2654435761u + seed);
    const float sum = static_cast<float>((r & 255) + (r >> 8 & 255) + (r >> 16 & 255) + (r >> 24));
    to[i] = __float2bfloat16((sum - 510) / 148 * sigma);
  }
}

void* random_memory(int64_t count, float sigma) {
  static uint32_t seed = 1;
  void* p = nullptr;
  check(cudaMalloc(&p, static_cast<size_t>(count) * 2), "cudaMalloc");
  fill<<<1024, 256>>>(static_cast<bf16*>(p), count, sigma, seed++);
  check_launch("fill");
  return p;
}

struct Layer {
  const char* name;
  int64_t n, k;
  LinearOut out;
  bool bias;

  int64_t width() const { return out == LinearOut::kGateUpSilu ? n / 2 : n; }
};
struct Stack {
  const char* name;
  std::vector<Layer> layers;
  std::vector<int64_t> tokens;
};

constexpr auto kStore = LinearOut::kStore, kAdd = LinearOut::kAdd, kGates = LinearOut::kGateUpSilu;
const std::vector<Stack> kStacks = {
    {"3B",
     {{"qkv", 2560, 2048, kStore, true},
      {"o", 2048, 2048, kAdd, false},
      {"gate_up", 22016, 2048, kGates, false},
      {"down", 2048, 11008, kAdd, false}},
     {997, 1039, 512, 2545, 3269, 4096, 8192}},
    {"7B",
     {{"qkv", 4608, 3584, kStore, true},
      {"o", 3584, 3584, kAdd, false},
      {"gate_up", 37888, 3584, kGates, false},
      {"down", 3584, 18944, kAdd, false}},
     {997, 1039, 4096}},
    {"vision",
     {{"qkv", 3840, 1280, kStore, true},
      {"proj", 1280, 1280, kAdd, true},
      {"gate_up", 6912, 1280, kGates, true},
      {"down", 1280, 3456, kAdd, true}},
     {3888, 5184, 10080}},
    {"patches", {{"embed", 1280, 1176, kStore, false}}, {3888}},
    {"merger", {{"first", 5120, 5120, kStore, true}, {"second", 2048, 5120, kStore, true}}, {972}},
    {"head", {{"head", 151936, 2048, LinearOut::kFloat, false}}, {1, 8, 32}},
};

// Microseconds of each, taking turns, so that the clock that heat and power leave is the same for all.
std::vector<double> median_us(cudaStream_t stream, int replays, const std::vector<std::function<void()>>& works) {
  std::vector<cudaGraphExec_t> graphs;
  for (const auto& work : works) {
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    work();
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0), "graph");
    check(cudaGraphDestroy(graph), "graph");
  }
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<std::vector<float>> times(works.size());
  for (int i = 0; i < replays + 2; ++i)
    for (size_t g = 0; g < graphs.size(); ++g) {
      check(cudaEventRecord(begin, stream), "event");
      check(cudaGraphLaunch(graphs[g], stream), "graph");
      check(cudaEventRecord(end, stream), "event");
      check(cudaStreamSynchronize(stream), "replay");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "event");
      if (i >= 2) times[g].push_back(ms * 1000);
    }
  for (const cudaGraphExec_t graph : graphs) check(cudaGraphExecDestroy(graph), "graph");
  std::vector<double> medians;
  for (auto& t : times) {
    std::nth_element(t.begin(), t.begin() + replays / 2, t.end());
    medians.push_back(t[static_cast<size_t>(replays / 2)]);
  }
  return medians;
}

class CublasLt {
 public:
  explicit operator bool() const { return library_; }

  CublasLt() {
    const char* path = std::getenv("CUBLASLT");
    library_ = path ? dlopen(path, RTLD_NOW) : nullptr;
    if (!library_) return;
    ok(get<decltype(&cublasLtCreate)>("cublasLtCreate")(&handle_));
    check(cudaMalloc(&workspace_, kWorkspace), "cudaMalloc");
  }

  // y [t,n] = x w^T (+ y), row-major.
  std::function<void(const void*, void*)> plan(const void* x, int64_t t, int64_t n, int64_t k, bool add,
                                               cudaStream_t stream) {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulPreference_t preference;
    const auto layout = get<decltype(&cublasLtMatrixLayoutCreate)>("cublasLtMatrixLayoutCreate");
    const auto set = get<decltype(&cublasLtMatmulDescSetAttribute)>("cublasLtMatmulDescSetAttribute");
    const auto multiply = get<decltype(&cublasLtMatmul)>("cublasLtMatmul");
    ok(get<decltype(&cublasLtMatmulDescCreate)>("cublasLtMatmulDescCreate")(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    ok(set(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    const auto un = static_cast<uint64_t>(n), uk = static_cast<uint64_t>(k), ut = static_cast<uint64_t>(t);
    ok(layout(&a, CUDA_R_16BF, uk, un, k));
    ok(layout(&b, CUDA_R_16BF, uk, ut, k));
    ok(layout(&c, CUDA_R_16BF, un, ut, n));
    ok(get<decltype(&cublasLtMatmulPreferenceCreate)>("cublasLtMatmulPreferenceCreate")(&preference));
    const size_t bytes = kWorkspace;
    ok(get<decltype(&cublasLtMatmulPreferenceSetAttribute)>("cublasLtMatmulPreferenceSetAttribute")(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)));
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    ok(get<decltype(&cublasLtMatmulAlgoGetHeuristic)>("cublasLtMatmulAlgoGetHeuristic")(handle_, op, a, b, c, c,
                                                                                        preference, 1, &best, &found));
    return [=, this](const void* w, void* y) {
      const float one = 1, beta = add ? 1 : 0;
      ok(multiply(handle_, op, &one, w, a, x, b, &beta, y, c, y, c, &best.algo, workspace_, kWorkspace, stream));
    };
  }

 private:
  static constexpr size_t kWorkspace = 64 << 20;
  template <class F>
  F get(const char* name) const {
    return reinterpret_cast<F>(dlsym(library_, name));
  }
  static void ok(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) fail("cublasLt: {}", static_cast<int>(status));
  }

  void* library_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

void bench(const Stack& stack, CublasLt& cublas, cudaStream_t stream) {
  int64_t params = 0, most = 0;
  for (const Layer& l : stack.layers) {
    params += l.n * l.k;
    most = std::max({most, l.n, l.k});
  }
  const int copies = static_cast<int>(std::max<int64_t>(2, 300'000'000 / params));
  const int64_t max_tokens = *std::max_element(stack.tokens.begin(), stack.tokens.end());
  const bool floats = stack.layers[0].out == LinearOut::kFloat;
  void* x = random_memory(max_tokens * most, 1);
  void* y = random_memory(max_tokens * most * (floats ? 2 : 1), 1);
  std::vector<std::vector<Weight>> weights(static_cast<size_t>(copies));
  for (auto& copy : weights)
    for (const Layer& l : stack.layers) {
      Weight w;
      w.format = Weight::Format::kStrips;
      w.parts = 1;
      w.strip_rows = l.n;
      w.strip_cols = l.k;
      const int64_t blocks = (l.k + 63) / 64;
      w.data[0] = Tensor(random_memory(l.n * blocks * 64, 0.02f), DType::kBF16, {l.n / 16, blocks, 1024});
      if (l.bias) w.bias[0] = Tensor(random_memory(l.n, 0.1f), DType::kBF16, {l.n});
      copy.push_back(w);
    }
  check(cudaDeviceSynchronize(), "fill");

  const auto call = [=, &stack, &weights](size_t copy, size_t i, int64_t t) {
    const Layer& l = stack.layers[i];
    linear(stream, Tensor(x, DType::kBF16, {t, l.k}), weights[copy][i],
           Tensor(y, floats ? DType::kF32 : DType::kBF16, {t, l.width()}), l.out);
  };
  for (const int64_t t : stack.tokens) {
    const double flops = 2.0 * static_cast<double>(t) * static_cast<double>(params);
    std::vector<std::function<void(const void*, void*)>> plans;
    for (const Layer& l : stack.layers)
      if (cublas && !floats) plans.push_back(cublas.plan(x, t, l.n, l.k, l.out == kAdd, stream));
    const auto ours = [&](size_t first, size_t last) {
      return std::function<void()>([=] {
        for (size_t c = 0; c < weights.size(); ++c)
          for (size_t i = first; i < last; ++i) call(c, i, t);
      });
    };
    const auto theirs = [&](size_t first, size_t last) {
      return std::function<void()>([&, first, last] {
        for (auto& copy : weights)
          for (size_t i = first; i < last; ++i) plans[i](copy[i].data[0].data, y);
      });
    };
    for (size_t i = 0; i < stack.layers.size(); ++i) {
      const Layer& l = stack.layers[i];
      const double f = 2.0 * static_cast<double>(t * l.n * l.k);
      std::vector<std::function<void()>> works = {ours(i, i + 1)};
      if (!plans.empty()) works.push_back(theirs(i, i + 1));
      std::printf("%-7s %-7s %5ld:", stack.name, l.name, static_cast<long>(t));
      for (const double us : median_us(stream, std::clamp(static_cast<int>(3e12 / (f * copies)), 3, 9), works))
        std::printf(" %4.0f", (floats ? static_cast<double>(l.n * l.k * 2) * 1e3 : f) * copies / us / 1e6);
      std::printf("\n");
    }
    if (stack.layers.size() > 1) {
      std::vector<std::function<void()>> works = {ours(0, stack.layers.size())};
      if (!plans.empty()) works.push_back(theirs(0, stack.layers.size()));
      std::printf("%-7s %-7s %5ld:", stack.name, "all", static_cast<long>(t));
      for (const double us : median_us(stream, std::clamp(static_cast<int>(1e13 / (flops * copies)), 5, 30), works))
        std::printf(" %4.0f (%.1f us)", flops * copies / us / 1e6, us / copies);
      std::printf("\n");
    }
    std::fflush(stdout);
  }
  for (auto& copy : weights)
    for (Weight& w : copy) {
      cudaFree(w.data[0].data);
      cudaFree(w.bias[0].data);
    }
  cudaFree(x);
  cudaFree(y);
}

}  // namespace
}  // namespace saccade::cuda

int main(int argc, char** argv) {
  using namespace saccade::cuda;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  CublasLt cublas;
  std::printf("TFLOP/s (head: GB/s): linear, cublasLt\n");
  for (const Stack& stack : kStacks)
    if (argc < 2 || std::string(argv[1]) == "all" || std::string(argv[1]).find(stack.name) != std::string::npos)
      bench(stack, cublas, stream);
}
