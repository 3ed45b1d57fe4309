// Time of a decode step of Qwen2.5-VL with random weights, the kernel alone and with what stands around it in the
// engine: cuda_decode_bench
#include <cuda_bf16.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "graph_timing.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sampling.h"

namespace saccade {
namespace {

__global__ void fill(__nv_bfloat16* to, int64_t count, float sigma, unsigned seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    to[i] = __float2bfloat16((static_cast<float>(x >> 8) * 0x1p-23f - 1) * 1.7320508f * sigma);
  }
}

struct Shape {
  const char* name;
  int64_t width, ffn, heads, kv_heads, head_dim, depth, vocabulary;
};
constexpr Shape kShapes[] = {{"3B", 2048, 11008, 16, 2, 128, 36, 151936}, {"7B", 3584, 18944, 28, 4, 128, 28, 152064}};
constexpr double kBandwidth = 4.65e12;

class Memory {
 public:
  ~Memory() {
    for (void* p : owned_) cudaFree(p);
    for (void* p : pinned_) cudaFreeHost(p);
  }
  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, dtype, shape);
    cuda::check(cudaMalloc(&t.data, t.bytes()), "cudaMalloc");
    cuda::check(cudaMemset(t.data, 0, t.bytes()), "cudaMemset");
    owned_.push_back(t.data);
    return t;
  }
  Tensor random(std::initializer_list<int64_t> shape, float sigma) {
    const Tensor t = zeros(DType::kBF16, shape);
    fill<<<1024, 256>>>(static_cast<__nv_bfloat16*>(t.data), t.numel(), sigma, ++seed_);
    cuda::check_launch("fill");
    return t;
  }
  Tensor pinned(std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, DType::kI32, shape);
    cuda::check(cudaMallocHost(&t.data, t.bytes()), "cudaMallocHost");
    pinned_.push_back(t.data);
    return t;
  }
  Tensor upload(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
    const Tensor t = zeros(DType::kI32, shape);
    cuda::check(cudaMemcpy(t.data, values.data(), t.bytes(), cudaMemcpyHostToDevice), "upload");
    return t;
  }
  Weight strips(int64_t rows, int64_t cols, Weight::RowOrder order) {
    Weight w;
    w.format = Weight::Format::kStrips;
    w.order = order;
    w.parts = 1;
    w.strip_rows = rows;
    w.strip_cols = cols;
    w.data[0] = random({cuda::strips_of(rows), cuda::blocks_of(cols), cuda::kBlockElements}, 0.02f);
    return w;
  }

 private:
  std::vector<void*> owned_, pinned_;
  unsigned seed_ = 0;
};

void bench(const Shape& s) {
  using Order = Weight::RowOrder;
  constexpr int64_t kMaxRows = 8, kMaxPages = 66;
  Memory memory;
  std::vector<cuda::DecoderLayer> layers;
  std::vector<Tensor> kv_layers;
  double weight_bytes = 0;
  for (int64_t l = 0; l < s.depth; ++l) {
    cuda::DecoderLayer layer{memory.random({s.width}, 1),
                             memory.random({s.width}, 1),
                             memory.strips((s.heads + 2 * s.kv_heads) * s.head_dim, s.width, Order::kRope),
                             memory.strips(s.width, s.heads * s.head_dim, Order::kPlain),
                             memory.strips(2 * s.ffn, s.width, Order::kGateUp),
                             memory.strips(s.width, s.ffn, Order::kPlain)};
    layer.qkv.bias[0] = memory.random({layer.qkv.rows()}, 0.1f);
    for (const Weight* w : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
      weight_bytes += static_cast<double>(w->bytes());
    layers.push_back(layer);
    kv_layers.push_back(memory.random({kMaxRows * kMaxPages, 2, s.kv_heads, 64, s.head_dim}, 1));
  }
  cuda::Decoder d{layers.data(),
                  kv_layers.data(),
                  s.depth,
                  s.heads,
                  s.kv_heads,
                  s.head_dim,
                  1e-6f,
                  memory.random({s.width}, 1),
                  memory.strips(s.vocabulary, s.width, Order::kPlain)};
  weight_bytes += static_cast<double>(d.head.bytes());
  const Tensor workspace = memory.zeros(DType::kU8, {static_cast<int64_t>(cuda::persistent_workspace_bytes(d))});
  const Tensor embedding = memory.random({s.vocabulary, s.width}, 1);
  cudaEvent_t read;
  cuda::check(cudaEventCreateWithFlags(&read, cudaEventDisableTiming), "event");
  for (const int64_t context : {1000, 4000})
    for (const int64_t rows : {1, 2, 4, 8}) {
      std::vector<int32_t> slots, lens, table;
      for (int64_t b = 0; b < rows; ++b) {
        for (int64_t i = 0; i < kMaxPages; ++i) table.push_back(static_cast<int32_t>(i * rows + b));
        lens.push_back(static_cast<int32_t>(context));
        slots.push_back(static_cast<int32_t>((context - 1) / 64 * rows + b) * 64 +
                        static_cast<int32_t>((context - 1) % 64));
      }
      cuda::DecodeStep step;
      step.h = memory.random({rows, s.width}, 1);
      step.cos_sin = memory.zeros(DType::kF32, {rows, 2, s.head_dim / 2});
      step.slots = memory.upload({rows}, slots);
      step.kv.kv_lens = memory.upload({rows}, lens);
      step.kv.page_table = memory.upload({rows, kMaxPages}, table);
      step.logits = memory.zeros(DType::kF32, {rows, s.vocabulary});
      step.workspace = workspace;
      const auto [us, best] = launches_us(nullptr, 10, [&] { cuda::decode_persistent(nullptr, d, step); });

      const Tensor host = memory.pinned({256}), inputs = memory.zeros(DType::kI32, {256}), ids = inputs.slice(0, rows);
      const Tensor positions(inputs.as<int32_t>() + 64, DType::kI32, {3, rows}), for_host = memory.pinned({rows});
      const Tensor chosen = memory.zeros(DType::kI32, {rows});
      const Tensor params = memory.pinned({8, static_cast<int64_t>(sizeof(cuda::SampleRow) / 4)});
      const Tensor seen = memory.zeros(DType::kI32, {0, (s.vocabulary + 31) / 32});
      auto* const sample_rows = static_cast<cuda::SampleRow*>(params.data);
      std::fill_n(host.as<int32_t>(), 256, static_cast<int32_t>(context - 1));
      for (int64_t b = 0; b < rows; ++b) {
        host.as<int32_t>()[b] = static_cast<int32_t>(-1 - b);
        sample_rows[b] = {};
      }
      const std::array<int64_t, 3> sections = {16, 24, 24};
      const auto [around, best_around] = launches_us(nullptr, 10, [&] {
        cuda::fetch(nullptr, host, inputs, ids, chosen);
        cuda::embed(nullptr, embedding, ids, step.h);
        cuda::rope_table(nullptr, positions, sections, 1e6, step.cos_sin);
        cuda::decode_persistent(nullptr, d, step);
        cuda::sample(nullptr, step.logits, sample_rows, seen, true, {}, chosen, for_host);
        cuda::check(cudaEventRecord(read), "event");
      });
      const double bytes = weight_bytes + static_cast<double>(rows * context * s.depth * 4 * s.kv_heads * s.head_dim);
      fmt::print(
          "{} context {} rows {}: {:7.1f} us (best {:7.1f}), {:6.1f} tok/s, {:4.1f}% of 4.65 TB/s; a step "
          "{:7.1f} us (best {:7.1f}), {:6.1f} tok/s\n",
          s.name, context, rows, us, best, static_cast<double>(rows) * 1e6 / us, 100 * bytes / kBandwidth / (us * 1e-6),
          around, best_around, static_cast<double>(rows) * 1e6 / around);
    }
}

}  // namespace
}  // namespace saccade

int main() {
  for (const saccade::Shape& s : saccade::kShapes) saccade::bench(s);
}
