// One kernel per token: all layers of a dense decoder and its head, for 1 to 8 sequences.
//
// One CTA on each SM walks through six phases a layer (qkv with norm, bias, rope and append; attention and its
// combination; output; gate and up; down). There is no barrier: who needs values of other CTAs waits for the values
// (decode_persistent_exchange.cuh). One thread of each CTA streams the CTA's strips of all phases of all layers, and
// the cache, through a ring of up to 12 pages of 16 KiB in shared memory, 26 MB over 132 SMs: weights do not wait for
// activations. Few pages are on their way at a time, since what CTAs tell each other queues behind them; of many rows
// those behind a full ring wait in the L2 cache. Eight warps multiply (decode_persistent_product.cuh), two add what
// these multiplied and store it, one empties the exchange.
//
// A launch begins while the kernels before it run: the first weights are on their way when the step's inputs come.
//
// Of more than 4 rows each CTA of a cluster of two normalises every second one, for both. Two mbarriers order what one
// writes to the other, which waits for all of it before it ends.
//
// Bytes: all weights and the cache, once. Qwen2.5-VL-3B has 6.17 GB of weights: 1327 us at 4.65 TB/s; 7B 14.1 GB:
// 3041 us. Sums are in float; every column of every mma is one sequence, no sum or split depends on other rows.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/decode_persistent_product.cuh"

namespace saccade::cuda {
namespace persistent {

constexpr int kSharedBytes = 227 * 1024;

// kRows: of the batch or more; kChunks: of 8 values of the hidden width for each thread.
template <int kRows, int kChunks>
__global__ void __launch_bounds__(kThreads + kHelpers, 1) decode_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) uint8_t memory[];
  uint8_t* x = memory + p.ring * kPageBytes;
  Shared& s = *reinterpret_cast<Shared*>(x + p.x_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.ring; ++i) {
      mbarrier_init(shared_address(&s.full[i]), 1);
      mbarrier_init(shared_address(&s.empty[i]), kWarps);
    }
    for (int i = 0; i < kEnders; ++i) {
      mbarrier_init(shared_address(&s.sums_full[i]), kThreads);
      mbarrier_init(shared_address(&s.sums_empty[i]), 32);
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(shared_address(&s.view_full[i]), 1);
      mbarrier_init(shared_address(&s.view_empty[i]), kThreads + 32 * kEnders);
    }
    mbarrier_init(shared_address(&s.arrived), 1);
    mbarrier_init(shared_address(&s.combined_parts), kWarps);
    mbarrier_init(shared_address(&s.cleared), 1);
    mbarrier_init(shared_address(&s.split), 32);
    mbarrier_init(shared_address(&s.peer_rows), 1);
    mbarrier_init(shared_address(&s.peer_free), kWarps);
    fence_barrier_init();
    s.in_flight = kInFlight;
  }
  norm_ctas(kRows) > 1 ? cluster_sync() : __syncthreads();

  if (warp >= kWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
    if (threadIdx.x == kThreads) stream_pages<kRows>(p, s, memory);
    if (warp == kWarps + 1) {
      if (lane == 0) prefetch_for_layers(p);
      bring_view(p, s, lane, 0);
      pdl_wait();
      split_sequences(p, s);
      __syncwarp();
      mbarrier_arrive(shared_address(&s.split));
      clear_exchange(p, s, load_turn(p));
    }
    if (warp > kWarps + 1) end_strips(p, s, warp - kWarps - 2);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    pdl_wait();
    const int first_turn = load_turn(p);
    Thread t{{p, s, lane, lane / 4, lane % 4, first_turn}, memory, x, warp};
    for (int i = 0; i <= 4 * p.depth; ++i) {
      const int layer = i / 4, phase = i < 4 * p.depth ? i % 4 : kHead;
      if (phase == kHead) pdl_launch();
      if (phase == kQkv) mbarrier_wait(shared_address(&s.view_full[layer & 1]), layer >> 1 & 1);
      products<kRows, kChunks>(t, layer, phase);
      if (phase == kQkv) {
        if (threadIdx.x == 0) atomicExch(&s.in_flight, kInFlightChain);
        if (layer == 0) mbarrier_wait(shared_address(&s.split), 0);
        attend(t);
        combine(t);
      }
      if (phase == kGateUp) mbarrier_arrive(shared_address(&s.view_empty[layer & 1]));
      if (phase == kDown) ++t.turn;
    }
    if (threadIdx.x == 0 && atomicAdd(p.left, 1) + 1 == gridDim.x) {  // for the next launch
      *p.left = 0;
      *p.turn = (first_turn + p.depth) % kTurns;
    }
  }
}

namespace {

bool has_strips(const Weight& w, Weight::RowOrder order, int64_t rows, int64_t cols, bool may_have_bias) {
  return w.format == Weight::Format::kStrips && w.order == order && w.parts == 1 && w.data[0].dtype == DType::kBF16 &&
         w.rows() == rows && w.cols() == cols && (may_have_bias || !w.bias[0]);
}

bool has_shapes(const Decoder& d) {
  using Order = Weight::RowOrder;
  if (d.depth < 1 || d.depth > kMaxLayers || (d.head_dim != 64 && d.head_dim != 128) || d.kv_heads < 1) return false;
  if (d.heads % d.kv_heads != 0 || d.heads / d.kv_heads > kMaxGroup) return false;
  const int64_t width = d.norm.numel(), q_width = d.heads * d.head_dim,
                qkv_rows = q_width + 2 * d.kv_heads * d.head_dim;
  if (width % kBlockCols != 0 || width > kMaxWidth) return false;
  if (!has_strips(d.head, Order::kPlain, d.head.rows(), width, false) || d.head.rows() > kStripRows * 65535)
    return false;
  const int64_t ffn = d.layers[0].down.cols();
  if (ffn % kBlockCols != 0) return false;
  return std::all_of(d.layers, d.layers + d.depth, [&](const DecoderLayer& layer) {
    return has_strips(layer.qkv, Order::kRope, qkv_rows, width, true) &&
           has_strips(layer.output, Order::kPlain, width, q_width, false) &&
           has_strips(layer.gate_up, Order::kGateUp, 2 * ffn, width, false) &&
           has_strips(layer.down, Order::kPlain, width, ffn, false);
  });
}

// The kernel and how shared memory is shared out, for a number of rows.
template <int kRows>
auto kernel_of(Params& p) {
  const int brought = are_many(kRows) ? kXPages * kPageBlocks * kBlockCols : 2 * tile_columns(kRows);
  p.x_bytes = std::max(p.width, brought) * kRows * 2;
  p.ring = std::min(kMaxRing, static_cast<int>(kSharedBytes - p.x_bytes - sizeof(Shared)) / kPageBytes);
  return p.width <= kMaxWidth / 2 ? decode_kernel<kRows, 1> : decode_kernel<kRows, 2>;
}
auto kernel_of(Params& p) {
  return p.rows == 1   ? kernel_of<1>(p)
         : p.rows == 2 ? kernel_of<2>(p)
         : p.rows <= 4 ? kernel_of<4>(p)
                       : kernel_of<8>(p);
}

// Deals the strips of a phase to `load.size()` shares, of which `load` counts the blocks: as many to each, give or take
// one, those with the smallest load first; with `level` one less or more again (or what the ring holds), so that loads
// become equal. A barrier follows each phase, and the ring evens out only what is less than its size.
void deal(Params& p, int phase, int64_t strips, bool level, std::vector<int64_t>& load) {
  const auto shares = static_cast<int64_t>(load.size()), blocks = int64_t{p.blocks[phase]};
  const int64_t even = strips / shares, rounds = level ? std::max<int64_t>(0, even - 1) : even;
  const int64_t most = level ? std::max<int64_t>(even + 1, kMaxRing * kPageBlocks / blocks) : even + 1;
  std::vector<int64_t> count(load.size(), rounds);
  for (int64_t& blocks_so_far : load) blocks_so_far += rounds * blocks;
  for (int64_t rest = strips - rounds * shares; rest > 0; --rest) {
    size_t least = load.size();
    for (size_t i = 0; i < load.size(); ++i)
      if (count[i] < most && (least == load.size() || load[i] < load[least])) least = i;
    ++count[least];
    load[least] += blocks;
  }
  p.rounds[phase] = static_cast<int>(rounds);
  int64_t next = rounds * shares;
  for (size_t i = 0; i < load.size(); ++i) {
    p.rest[phase][i] = static_cast<uint16_t>(next);
    next += count[i] - rounds;
  }
  p.rest[phase][load.size()] = static_cast<uint16_t>(next);
}

// Pieces of the workspace, each from a 256-byte boundary.
struct Workspace {
  std::byte* at;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
};
size_t place_workspace(Params& p, std::byte* memory) {
  Workspace w{memory};
  const int64_t parts = int64_t{kMaxRows} * p.kv_heads * kMaxSplits * kMaxGroup;
  constexpr int64_t kExchanged = int64_t{kTurns} * kMaxRows;
  p.turn = w.take<unsigned>(1);
  p.left = w.take<unsigned>(1);
  p.qkv = w.take<bf16>(kExchanged * p.qkv_rows);
  p.attended = w.take<bf16>(kExchanged * p.q_width);
  p.middle = w.take<bf16>(kExchanged * p.width);
  p.activated = w.take<bf16>(kExchanged * p.ffn);
  p.out = w.take<bf16>(kExchanged * p.width);
  p.partial = w.take<float>(parts * p.head_dim);
  p.partial_top = w.take<float2>(parts);
  return w.used;
}

void set_shapes(Params& p, const Decoder& d) {
  p.depth = static_cast<int>(d.depth);
  p.width = static_cast<int>(d.norm.numel());
  p.heads = static_cast<int>(d.heads);
  p.kv_heads = static_cast<int>(d.kv_heads);
  p.head_dim = static_cast<int>(d.head_dim);
  p.group_heads = p.heads / p.kv_heads;
  p.head_shift = p.head_dim == 64 ? 6 : 7;
  p.q_width = p.heads * p.head_dim;
  p.qkv_rows = p.q_width + 2 * p.kv_heads * p.head_dim;
  p.ffn = static_cast<int>(d.layers[0].down.cols());
  p.vocabulary = static_cast<int>(d.head.rows());
}

void make_schedule(Params& p, int ctas) {
  p.blocks[kQkv] = p.blocks[kGateUp] = p.blocks[kHead] = p.width / kBlockCols;
  p.blocks[kOutput] = p.q_width / kBlockCols;
  p.blocks[kDown] = p.ffn / kBlockCols;
  std::vector<int64_t> load(static_cast<size_t>(ctas)), head_load(load);
  deal(p, kDown, strips_of(p.width), false, load);
  deal(p, kOutput, strips_of(p.width), false, load);
  deal(p, kQkv, strips_of(p.qkv_rows), false, load);
  deal(p, kGateUp, strips_of(2 * p.ffn), true, load);
  deal(p, kHead, strips_of(p.vocabulary), false, head_load);
}

// Makes it once for the shapes that this thread decodes: it takes longer than a launch.
void set_schedule(Params& p, int ctas) {
  struct Made {
    std::array<int, 8> shapes{};
    Params p;
  };
  thread_local Made made;
  const std::array<int, 8> shapes = {p.width, p.heads, p.kv_heads, p.head_dim, p.ffn, p.vocabulary, ctas, 1};
  if (made.shapes != shapes) {
    made.p = p;
    make_schedule(made.p, ctas);
    made.shapes = shapes;
  }
  std::ranges::copy(made.p.blocks, p.blocks);
  std::ranges::copy(made.p.rounds, p.rounds);
  std::memcpy(p.rest, made.p.rest, sizeof(p.rest));
}

// CTAs wait for those of all SMs, which come as soon as other kernels have ended: those must not wait for these in
// turn. So kernels of different streams follow each other. (A cooperative launch would not share SMs with another one,
// but would not begin early either.)
void launch_one_by_one(Stream stream, void (*kernel)(Params), size_t shared, const Params& p) {
  struct Last {
    cudaEvent_t ended = nullptr;
    Stream stream = nullptr;
  };
  static std::mutex mutex;
  static std::map<int, Last> last_of_device;
  const std::lock_guard lock(mutex);
  int device = 0;
  check(cudaGetDevice(&device), "decode_persistent");
  Last& last = last_of_device[device];
  if (!last.ended) check(cudaEventCreateWithFlags(&last.ended, cudaEventDisableTiming), "decode_persistent");
  if (last.stream != stream) check(cudaStreamWaitEvent(stream, last.ended), "decode_persistent");
  launch_pdl_clusters("decode_persistent", kernel, static_cast<unsigned>(norm_ctas(p.rows)),
                      static_cast<unsigned>(sm_count()), kThreads + kHelpers, shared, stream, p);
  check(cudaEventRecord(last.ended, stream), "decode_persistent");
  last.stream = stream;
}

// Whether clusters reach every SM, as CTAs wait for those of all.
bool clusters_fit() {
  static const bool fit = [] {
    constexpr int kCtas = norm_ctas(kMaxRows);
    return kCtas * clusters_at_once("decode_persistent", decode_kernel<kMaxRows, 1>, kCtas, kThreads + kHelpers,
                                    kSharedBytes) >=
           sm_count();
  }();
  return fit;
}

}  // namespace
}  // namespace persistent

bool can_decode_persistent(const Decoder& d, int64_t rows) {
  using namespace persistent;
  return rows >= 1 && rows <= kMaxRows && use_hopper() && sm_count() <= kMaxCtas &&
         kMaxRows * kMaxSplits * d.kv_heads <= kMaxItems * sm_count() &&
         kMaxRows * d.heads <= kMaxCombined * sm_count() && has_shapes(d) &&
         (norm_ctas(static_cast<int>(rows)) == 1 || clusters_fit());
}

size_t persistent_workspace_bytes(const Decoder& d) {
  persistent::Params p;
  persistent::set_shapes(p, d);
  return persistent::place_workspace(p, nullptr);
}

void decode_persistent(Stream stream, const Decoder& d, const DecodeStep& step) {
  using persistent::Params;
  const int64_t rows = step.h.dim(0);
  CHECK(can_decode_persistent(d, rows), "decode_persistent: {} rows, or shapes that it does not take", rows);
  Params p;
  persistent::set_shapes(p, d);
  persistent::set_schedule(p, sm_count());
  const size_t bytes = persistent::place_workspace(p, static_cast<std::byte*>(step.workspace.data));
  CHECK(step.workspace.bytes() >= bytes, "decode_persistent: workspace of {} bytes, needs {}", step.workspace.bytes(),
        bytes);
  const auto elements = [](const Tensor& t) { return static_cast<bf16*>(t.data); };
  p.rows = static_cast<int>(rows);
  p.eps = d.eps;
  p.inverse_width = 1 / static_cast<float>(p.width);
  p.scale = 1 / std::sqrt(static_cast<float>(d.head_dim));
  p.max_pages = static_cast<int>(step.kv.page_table.dim(1));
  p.h = elements(step.h);
  p.cos_sin = step.cos_sin.as<float>();
  p.slots = step.slots.as<int32_t>();
  p.kv_lens = step.kv.kv_lens.as<int32_t>();
  p.page_table = step.kv.page_table.as<int32_t>();
  p.logits = step.logits.as<float>();
  p.norm = elements(d.norm);
  p.head = elements(d.head.data[0]);
  for (int64_t i = 0; i < d.depth; ++i) {
    const DecoderLayer& layer = d.layers[i];
    p.layers[i] = {elements(layer.attention_norm),
                   elements(layer.mlp_norm),
                   elements(layer.qkv.bias[0]),
                   {elements(layer.qkv.data[0]), elements(layer.output.data[0]), elements(layer.gate_up.data[0]),
                    elements(layer.down.data[0])},
                   elements(d.kv_layers[i])};
  }

  const auto kernel = persistent::kernel_of(p);
  const int shared = p.ring * persistent::kPageBytes + p.x_bytes + static_cast<int>(sizeof(persistent::Shared));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "decode_persistent");
  persistent::launch_one_by_one(stream, kernel, static_cast<size_t>(shared), p);
}

}  // namespace saccade::cuda
