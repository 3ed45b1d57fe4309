// Steps of decode_chained on the shapes of Qwen2.5-VL with random weights, all layers distinct: time of a step as a
// CUDA graph and as plain launches, its kernels on their own, and the share of the bound (weights and cache read once
// at 4.65 TB/s).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_chain.cuh"

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

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

double time_ms(cudaStream_t stream, int repeats, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    cudaEventRecord(begin, stream);
    run();
    cudaEventRecord(end, stream);
    check(cudaEventSynchronize(end), "run");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms);
  }
  return median(times);
}

double graph_ms(cudaStream_t stream, int repeats, const std::function<void()>& run) {
  run();  // loads the kernels
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  run();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  const double ms = time_ms(stream, repeats, [&] { cudaGraphLaunch(exec, stream); });
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return ms;
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
    const double graph = graph_ms(stream, 15, run), bound = bytes(rows) / kBandwidth * 1e3;
    std::printf("%s B=%-2d graph %.3f ms (%.0f%% of bound %.3f)", s.name, static_cast<int>(rows), graph,
                100 * bound / graph, bound);
    std::printf(", launches %.3f ms\n", time_ms(stream, 15, run));
    std::fflush(stdout);
    for (const Tensor* x : {&t.h, &t.cos_sin, &t.slots, &t.kv.kv_lens, &t.kv.page_table, &t.logits, &t.workspace})
      cudaFree(x->data);
  }

  // Each kernel by itself, chained over the layers: us each and TB/s.
  void kernels(int64_t rows);
};

chain::Matrix matrix(const Weight& w, bool whole) {
  chain::Matrix m;
  m.w = static_cast<const chain::bf16*>(w.data[0].data);
  m.strips = static_cast<int>(strips_of(w.rows()));
  m.blocks = static_cast<int>(blocks_of(w.cols()));
  m.whole = whole;
  m.split.groups = (m.strips + chain::kGroupStrips - 1) / chain::kGroupStrips;
  m.split.blocks = m.blocks;
  m.split.ctas = std::min(sm_count(), whole ? m.strips : m.split.units());
  return m;
}

chain::Linear linear(const Weight& w, int rows, chain::bf16* x, bool whole) {
  chain::Linear a;
  a.x = x;
  a.m = matrix(w, whole);
  a.rows = rows;
  a.n = static_cast<int>(w.rows());
  return a;
}

void Bench::kernels(int64_t rows64) {
  const int rows = static_cast<int>(rows64);
  const DecodeStep t = step(rows);
  Tensor scratch = random({int64_t{64} << 20}, 0);
  auto* x = static_cast<chain::bf16*>(scratch.data);
  auto* y = x + (8 << 20);
  auto* partials = reinterpret_cast<float*>(x + (16 << 20));
  std::printf("%s B=%-2d us:", s.name, rows);
  const auto report = [&](const char* name, double bytes, const std::function<void(int64_t)>& one) {
    const double us = graph_ms(stream, 7,
                               [&] {
                                 for (int64_t i = 0; i < s.depth; ++i) one(i);
                               }) *
                      1e3 / static_cast<double>(s.depth);
    std::printf(" %s %.2f", name, us);
    if (bytes > 0) std::printf(" (%.2f TB/s)", bytes / us * 1e-6);
    std::fflush(stdout);
  };
  const auto split_of = [&](const Weight& w) { return matrix(w, false).split; };
  const auto split = [&](const char* name, Weight DecoderLayer::*w) {
    report(name, static_cast<double>((layers[0].*w).data[0].bytes()), [&, w](int64_t i) {
      chain::Linear a = linear(layers[i].*w, rows, x, false);
      a.partials = partials;
      chain::linear_hopper(stream, a);
    });
  };
  split("qkv", &DecoderLayer::qkv);
  split("o", &DecoderLayer::output);
  report("gate_up", static_cast<double>(layers[0].gate_up.bytes()), [&](int64_t i) {
    chain::Linear a = linear(layers[i].gate_up, rows, x, true);
    a.out = chain::Linear::kGateUpSilu;
    a.tiles = y;
    chain::linear_hopper(stream, a);
  });
  split("down", &DecoderLayer::down);
  report("head", static_cast<double>(d.head.bytes()), [&](int64_t) {
    chain::Linear a = linear(d.head, rows, x, true);
    a.out = chain::Linear::kLogits;
    a.logits = t.logits.as<float>();
    chain::linear_hopper(stream, a);
  });
  chain::Attention a;
  a.rows = rows;
  a.heads = static_cast<int>(s.heads);
  a.kv_heads = static_cast<int>(s.kv_heads);
  a.head_dim = static_cast<int>(s.head_dim);
  a.max_pages = static_cast<int>(pages);
  a.max_spans = std::min<int>(chain::kMaxSpans, (a.max_pages + 1) / 2);
  a.scale = 0.088f;
  a.cos_sin = t.cos_sin.as<float>();
  a.slots = t.slots.as<int32_t>();
  a.kv_lens = t.kv.kv_lens.as<int32_t>();
  a.page_table = t.kv.page_table.as<int32_t>();
  a.q = y;
  a.stats = reinterpret_cast<float2*>(x);
  a.sums = partials;
  a.y = y + (1 << 20);
  const auto kv_bytes = static_cast<double>(rows * context * s.kv_heads * s.head_dim * 4);
  report("attend", kv_bytes, [&](int64_t i) {
    a.kv = static_cast<chain::bf16*>(kv[i].data);
    chain::attend(stream, a);
  });
  report("combine", 0, [&](int64_t) { chain::combine(stream, a); });
  report("rope", 0, [&](int64_t) {
    chain::rope_append(stream, a, {partials, split_of(layers[0].qkv), rows},
                       static_cast<chain::bf16*>(layers[0].qkv.bias[0].data));
  });
  for (const Weight* w : {&layers[0].output, &layers[0].down})
    report("norm", 0, [&](int64_t) {
      chain::Norm n;
      n.h = static_cast<chain::bf16*>(t.h.data);
      n.partials = {partials, split_of(*w), rows};
      n.w = static_cast<chain::bf16*>(d.norm.data);
      n.x = y;
      n.rows = rows;
      n.width = static_cast<int>(s.width);
      n.eps = 1e-6f;
      chain::add_norm(stream, n);
    });
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  for (const Shape& s : kShapes) {
    if (!only.empty() && only != s.name) continue;
    Bench bench(s, 1061);
    for (const int64_t rows : {1, 16, 32, 64}) bench.whole(rows);
    for (const int64_t rows : {16, 64}) bench.kernels(rows);
  }
  return 0;
}
