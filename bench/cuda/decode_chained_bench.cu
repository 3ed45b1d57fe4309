// Steps of decode_chained on the shapes of Qwen2.5-VL with random weights, all layers distinct: time of a step as a
// CUDA graph and as plain launches, and the share of the bound (weights and cache read once at 4.65 TB/s).
#include <cuda_bf16.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "graph_timing.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/layout.h"

using namespace saccade;
using namespace saccade::cuda;

namespace {

constexpr double kBandwidth = 4.65e12;

struct Shape {
  const char* name;
  int64_t width, ffn, heads, kv_heads, head_dim, vocabulary, depth;
};
constexpr Shape kShapes[] = {{"3B", 2048, 11008, 16, 2, 128, 151936, 36}, {"7B", 3584, 18944, 28, 4, 128, 152064, 28}};

__global__ void fill(__nv_bfloat16* p, int64_t count, float sigma, float mean) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32) ^ 0x9e3779b9u;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    x *= 0x297a2d39u;
    x ^= x >> 15;
    p[i] = __float2bfloat16(mean + sigma * 1.732f * (static_cast<float>(x) * 0x1p-31f - 1));
  }
}

Tensor random(std::initializer_list<int64_t> shape, float sigma, float mean = 0) {
  Tensor t(nullptr, DType::kBF16, shape);
  check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  fill<<<1024, 256>>>(static_cast<__nv_bfloat16*>(t.data), t.numel(), sigma, mean);
  return t;
}

template <class T>
Tensor upload(DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& host) {
  Tensor t(nullptr, dtype, shape);
  check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
  check(cudaMemcpy(t.data, host.data(), t.bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  return t;
}

Weight weight(int64_t n, int64_t k, Weight::RowOrder order = Weight::RowOrder::kPlain) {
  Weight w;
  w.format = Weight::Format::kStrips;
  w.order = order;
  w.parts = 1;
  w.data[0] = random({strips_of(n), blocks_of(k), kBlockElements}, 1 / std::sqrt(static_cast<float>(k)));
  w.strip_rows = n;
  w.strip_cols = k;
  return w;
}

struct Bench {
  Shape s;
  cudaStream_t stream;
  std::vector<DecoderLayer> layers;
  std::vector<Tensor> kv;
  Decoder d;
  int64_t pages, context;

  Bench(const Shape& shape, int64_t context) : s(shape), pages((context + 63) / 64), context(context) {
    cudaStreamCreate(&stream);
    using Order = Weight::RowOrder;
    for (int64_t i = 0; i < s.depth; ++i) {
      DecoderLayer l;
      l.attention_norm = random({s.width}, 0.1f, 1);
      l.mlp_norm = random({s.width}, 0.1f, 1);
      l.qkv = weight((s.heads + 2 * s.kv_heads) * s.head_dim, s.width, Order::kRope);
      l.qkv.bias[0] = random({l.qkv.rows()}, 1);
      l.output = weight(s.width, s.heads * s.head_dim);
      l.gate_up = weight(2 * s.ffn, s.width, Order::kGateUp);
      l.down = weight(s.width, s.ffn);
      layers.push_back(l);
      kv.push_back(random({64 * pages, 2, s.kv_heads, 64, s.head_dim}, 1));
    }
    d = {layers.data(),
         kv.data(),
         s.depth,
         s.heads,
         s.kv_heads,
         s.head_dim,
         1e-6f,
         random({s.width}, 0.1f, 1),
         weight(s.vocabulary, s.width)};
  }

  DecodeStep step(int64_t rows) {
    DecodeStep t;
    t.h = random({rows, s.width}, 1);
    t.cos_sin = upload(DType::kF32, {rows, 2, s.head_dim / 2}, std::vector<float>(rows * s.head_dim, 0.7f));
    std::vector<int32_t> slots, lens, table;
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(p * 64 + b));
      lens.push_back(static_cast<int32_t>(context));
      slots.push_back(table.back() * 64 + static_cast<int32_t>((context - 1) % 64));
    }
    t.slots = upload(DType::kI32, {rows}, slots);
    t.kv.kv_lens = upload(DType::kI32, {rows}, lens);
    t.kv.page_table = upload(DType::kI32, {rows, pages}, table);
    t.kv.longest_q = 1;
    t.kv.longest_kv = context;
    t.logits = random({rows, 2 * s.vocabulary}, 1);
    t.logits = Tensor(t.logits.data, DType::kF32, {rows, s.vocabulary});
    const auto bytes = static_cast<int64_t>(chained_workspace_bytes(d, rows, pages));
    t.workspace = random({bytes / 2}, 0);
    return t;
  }

  double bytes(int64_t rows) const {
    double sum = static_cast<double>(d.head.bytes());
    for (const DecoderLayer& l : layers)
      sum += static_cast<double>(l.qkv.bytes() + l.output.bytes() + l.gate_up.bytes() + l.down.bytes());
    return sum + static_cast<double>(rows * context * s.kv_heads * s.head_dim * 4 * s.depth);
  }

  void whole(int64_t rows) {
    const DecodeStep t = step(rows);
    const auto run = [&] { decode_chained(stream, d, t); };
    const double launches = launches_us(stream, 1, run, 15).median * 1e-3;  // loads the kernels as well
    const double graph = graph_median_us(stream, 1, run) * 1e-3, bound = bytes(rows) / kBandwidth * 1e3;
    std::printf("%s B=%-2d graph %.3f ms (%.0f%% of bound %.3f), launches %.3f ms\n", s.name, static_cast<int>(rows),
                graph, 100 * bound / graph, bound, launches);
    std::fflush(stdout);
    for (const Tensor* x : {&t.h, &t.cos_sin, &t.slots, &t.kv.kv_lens, &t.kv.page_table, &t.logits, &t.workspace})
      cudaFree(x->data);
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  for (const Shape& s : kShapes) {
    if (!only.empty() && only != s.name) continue;
    Bench bench(s, 1061);
    for (const int64_t rows : {9, 16, 32, 64}) bench.whole(rows);
  }
  return 0;
}
