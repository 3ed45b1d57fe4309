// One kernel per token: all layers of a dense decoder and its head, for up to 64 sequences, on Hopper.
//
// One CTA on each SM, in clusters of two, launched cooperatively, walks through seven stages a layer
//   qkv | bias, rope, append, attention | output | add, norm | gate_up, silu | down | add, norm
// with a barrier of the grid behind each. What a stage leaves is put together in shared memory and goes from there in
// bulk stores, which tell when they have written: a release would wait for all copies on their way.
//
// Two warps stream what the CTA will need of weights and cache, of all stages and layers, through a ring of 10 slots of
// 16 KiB (21 MB over 132 SMs, 4.6 us of memory), and do not wait for barriers; only activations do, which another warp
// brings from the L2 cache, for both CTAs of the cluster.
//
// Products: x [64 rows, of which B count] is the operand of 64 rows of wgmma and a tile of 64 rows of weights the one
// of 64 columns. A cluster has a range of strips where an epilogue needs complete sums, else of (group of rows, block
// of K) units of equal bytes, whose sums the next stage adds up; its CTAs have the same blocks of K and each its own
// rows of weights. Bytes: all weights and the cache, once. Sums are in float, in an order that depends on N, K and the
// number of clusters.

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_batch_attention.cuh"
#include "kernels/cuda/decode_batch_stream.cuh"
#include "kernels/cuda/linear_wgmma.cuh"
#include "kernels/cuda/silu.cuh"

namespace saccade::cuda {
namespace batch {
namespace {

__device__ __forceinline__ const bf16* weights_of(const Params& p, int layer, int phase) {
  return phase == kHead ? p.head : p.layers[layer].weights[phase];
}

// Two strips that a warpgroup has summed: rows b and b + 8 of x, rows n and n + 1 of the matrix from 8 j + 2 (lane % 4)
// on.
struct Pair {
  int strip, strips, row, column, part;

  __device__ __forceinline__ Pair(const Thread& t, const Piece& piece, int first)
      : strip(piece.strip + first),
        strips(piece.strips - first),
        row(t.warp % 4 * 16 + t.lane / 4),
        column(t.lane % 4 * 2),
        part(piece.part) {}
};

// Of strips `first` and one more of a piece, to `staged` [strips of the piece,x_rows(),8].
__device__ __forceinline__ void store_activated(const Params& p, bf16* staged, const float* sums, const Pair& t,
                                                int first) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j >= t.strips) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* gates = sums + 8 * j + 2 * half;
      const float first_gate = silu(chain::rounded(gates[0])), second_gate = silu(chain::rounded(gates[1]));
      const __nv_bfloat162 y =
          __hmul2(__floats2bfloat162_rn(first_gate, second_gate), __floats2bfloat162_rn(gates[4], gates[5]));
      const int b = t.row + 8 * half;
      if (b < p.x_rows())
        *reinterpret_cast<__nv_bfloat162*>(staged + ((first + j) * p.x_rows() + b) * 8 + t.column) = y;
    }
  }
}
// To `staged` [2 strips,B,16], as Partials have them.
__device__ __forceinline__ void store_partials(const Params& p, float4* staged, const float* sums, const Pair& t) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float* x = sums + 8 * j + 2 * half;
      if (t.row + 8 * half < p.rows && j < t.strips)
        staged[(j * p.rows + t.row + 8 * half) * 4 + t.column / 2] = make_float4(x[0], x[1], x[4], x[5]);
    }
}
__device__ __forceinline__ void store_logits(const Params& p, const float* sums, const Pair& t) {
  const int end = p.products[kHead].n, n = t.strip * kStripRows + t.column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (t.row + 8 * half >= p.rows) continue;
    float* const row = p.logits + static_cast<int64_t>(t.row + 8 * half) * end + n;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(float2) == 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j / 2 >= t.strips || n + 8 * j >= end) continue;
      const float2 v = {chain::rounded(sums[4 * j + 2 * half]), chain::rounded(sums[4 * j + 2 * half + 1])};
      if (aligned && n + 8 * j + 1 < end) {
        __stcg(reinterpret_cast<float2*>(row + 8 * j), v);
      } else {
        row[8 * j] = v.x;
        if (n + 8 * j + 1 < end) row[8 * j + 1] = v.y;
      }
    }
  }
}

// The low half of matrix_descriptor() holds the address, the other constants. In a register of the warp.
__device__ __forceinline__ uint32_t low_half(uint32_t address) {
  return __shfl_sync(~0u, static_cast<uint32_t>(matrix_descriptor(address)), 0);
}
__device__ __forceinline__ uint64_t descriptor(uint32_t low) { return matrix_descriptor(0) >> 32 << 32 | low; }

// Sums of a piece of whole strips in this warpgroup: of kFull tiles, every other one of the piece's, and of half of a
// third one, two strips, of which the other warpgroup has the rest.
template <int kFull, bool kShared>
__device__ __forceinline__ void sum_whole(const Thread& thread, const Memory& memory, const Piece& piece, Turn& turn,
                                          Turn& x_turn, float (&sums)[kTiles * 32]) {
  constexpr int kMine = kFull + kShared;
  float full[kTiles][32] = {}, half_tile[16] = {};
  const int tiles = piece.tiles(), group = thread.warp / 4;
  const auto free_x = [&](int slot) {
    if (thread.lane < kRanks) mbarrier_arrive_read(cluster_address(memory.x_empty(slot), thread.lane), 1);
  };
  const auto add = [&](uint32_t x, const uint32_t* w, int half) {
#pragma unroll
    for (int k = 0; k < kBlockCols / 16; ++k) {
      const uint32_t on = half * (kTileBytes >> 4) + 2 * k;
      if constexpr (kFull > 0) {
#pragma unroll
        for (int i = 0; i < kFull; ++i) wgmma<64>(full[i], descriptor(x + 2 * k), descriptor(w[i] + on), 1);
      }
      if constexpr (kShared) wgmma<32>(half_tile, descriptor(x + 2 * k), descriptor(w[kFull] + on), 1);
    }
  };
  for (int block = piece.begin; block < piece.end; block += kSlotBlocks) {
    const bool both = block + 1 < piece.end;
    int slots[kMine + 1];
    uint32_t w[kMine + 1];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      Turn t = turn;
      t.advance(i < kFull ? 2 * i + group : tiles - 1, kSlots);
      slots[i] = t.slot;
      w[i] = low_half(memory.ring + t.slot * kSlotBytes + (i < kFull ? 0 : group * 2 * kBlockBytes));
      mbarrier_wait(memory.full(t.slot), t.parity);
    }
    const Turn first = x_turn;
    x_turn.advance(1, kXSlots);
    const uint32_t x0 = low_half(memory.x + first.slot * kXBytes), x1 = low_half(memory.x + x_turn.slot * kXBytes);
    mbarrier_wait(memory.x_full(first.slot), first.parity);
    if (block == piece.begin) allow_in_flight(memory, kInFlight);
    if (both) mbarrier_wait(memory.x_full(x_turn.slot), x_turn.parity);
    if (kMine > 0 && both) {
      wgmma_fence();
      add(x0, w, 0);
      add(x1, w, 1);
      wgmma_commit();
      wgmma_wait<0, 0>();
    } else if (kMine > 0) {
      wgmma_fence();
      add(x0, w, 0);
      wgmma_commit();
      wgmma_wait<0, 1>();
    }
    free_x(first.slot);
    if (both) {
      free_x(x_turn.slot);
      x_turn.advance(1, kXSlots);
    }
    if (thread.lane == 0) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) free_slot(memory, slots[i], i < kFull ? 4 : kConsumerWarps);
    }
    turn.advance(tiles, kSlots);
  }
#pragma unroll
  for (int i = 0; i < 32 * kFull; ++i) sums[i] = full[i / 32][i % 32];
#pragma unroll
  for (int i = 0; i < 16 * kShared; ++i) sums[32 * kFull + i] = half_tile[i];
}

// Sums of a tile of a split product: each warpgroup takes every other block, and in the end has the sums of two strips.
// `flat`: activations are [8 columns each,rows,8] with that many rows, not swizzled.
__device__ __forceinline__ void sum_split(const Thread& thread, const Memory& memory, const Piece& piece, Turn& turn,
                                          Turn& x_turn, int flat, float (&sums)[kTiles * 32]) {
  const int group = thread.warp / 4;
  // Descriptors of activations without swizzle: core matrices of 8 rows follow each other, those of the next 8 columns
  // are `flat` rows of 16 bytes further.
  const uint32_t x_high = flat > 0 ? 8 * 16 >> 4 : static_cast<uint32_t>(matrix_descriptor(0) >> 32);
  const uint32_t x_step = flat > 0 ? 2 * flat : 2, x_leading = flat > 0 ? flat << 16 : 1 << 16;
  float tile[32] = {};
  for (int block = piece.begin; block < piece.end; block += kSlotBlocks) {
    if (block + group < piece.end) {
      Turn x = x_turn;
      x.advance(group, kXSlots);
      const uint32_t from = low_half(memory.x + x.slot * kXBytes) % (1 << 16) | x_leading,
                     w = low_half(memory.ring + turn.slot * kSlotBytes + group * kTileBytes);
      mbarrier_wait(memory.x_full(x.slot), x.parity);
      if (block == piece.begin) allow_in_flight(memory, kInFlight);
      mbarrier_wait(memory.full(turn.slot), turn.parity);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBlockCols / 16; ++k)
        wgmma<64>(tile, static_cast<uint64_t>(x_high) << 32 | (from + k * x_step), descriptor(w + 2 * k), 1);
      wgmma_commit();
      wgmma_wait<0, 2>();
      if (thread.lane < kRanks)
        mbarrier_arrive_read(cluster_address(memory.x_empty(x.slot), thread.lane), 2);  // for both warpgroups
    } else {
      mbarrier_wait(memory.full(turn.slot), turn.parity);
    }
    if (thread.lane == 0) free_slot(memory, turn.slot, kConsumerWarps);
    turn.advance(1, kSlots);
    x_turn.advance(min(kSlotBlocks, piece.end - block), kXSlots);
  }
  float4* const here = memory.exchange + thread.index % 128;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* other = tile + 4 * i;
    float4 v = make_float4(other[0], other[1], other[2], other[3]);
    if (group == 0) v = make_float4(other[16], other[17], other[18], other[19]);
    here[(group * 4 + i) * 128] = v;
  }
  sync_consumers();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = here[((1 - group) * 4 + i) * 128];
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[4 * i + j] = (group == 0 ? tile[4 * i + j] : tile[16 + 4 * i + j]) + (&v.x)[j];
  }
}

// What a warpgroup has of a tile of a split product, through what it has read of memory.exchange.
__device__ __forceinline__ void store_split(const Params& p, const chain::Split& split, const Thread& thread,
                                            const Memory& memory, const Piece& piece, const float* sums) {
  const int group = thread.warp / 4;
  const Pair t(thread, piece, 2 * group);
  float4* const staged = memory.exchange + (1 - group) * 4 * 128;
  sync_warpgroup(group);
  store_partials(p, staged, sums, t);
  fence_proxy_async_shared();
  sync_warpgroup(group);
  if (thread.index % 128 != 0 || t.strips <= 0) return;
  const chain::Partials partials = {p.partials, split, p.rows};
  bulk_store(partials.of(t.part, 0, t.strip * kStripRows), shared_address(staged),
             min(2, t.strips) * p.rows * kStripRows * static_cast<int>(sizeof(float)));
  bulk_store_commit();
}

__device__ __forceinline__ void multiply(const Params& p, const Memory& memory, int phase, Turn& turn, Turn& x_turn) {
  const chain::Matrix& m = p.products[phase].m;
  const Thread thread;
  const int group = thread.warp / 4;
  Range range = memory.s->ranges[phase];
  Piece piece;
  for (bool again = false; range.next(m, piece); again = true) {
    float sums[kTiles * 32] = {};
    const int tiles = piece.tiles();
    int pairs = tiles;              // of strips
    if (again && phase != kHead) {  // what the last piece left in memory.exchange is on its way
      bulk_store_wait_read();
      sync_consumers();
    }
    if (!m.whole && tiles == 1) {
      sum_split(thread, memory, piece, turn, x_turn, phase == kDown ? p.x_rows() : 0, sums);
    } else if (tiles == 4) {
      sum_whole<2, false>(thread, memory, piece, turn, x_turn, sums);
    } else if (tiles == 3) {
      sum_whole<1, true>(thread, memory, piece, turn, x_turn, sums);
    } else if (tiles > group) {
      sum_whole<1, false>(thread, memory, piece, turn, x_turn, sums);
      pairs = 2;
    } else {
      sum_whole<0, false>(thread, memory, piece, turn, x_turn, sums);
      pairs = 0;
    }
    if (range.left <= 0) allow_in_flight(memory, kInFlightBetween);
    if (!m.whole) {
      if (tiles == 1) store_split(p, m.split, thread, memory, piece, sums);
      continue;
    }
#pragma unroll 1  // one copy of the code
    for (int i = 0; i < pairs; ++i) {
      const int first =
          i == 2 && tiles == 3 ? 2 * kTileStrips + 2 * group : (i / 2 * 2 + group) * kTileStrips + i % 2 * 2;
      const Pair t(thread, piece, first);
      if (phase == kGateUp)
        store_activated(p, reinterpret_cast<bf16*>(memory.exchange), sums, t, first);
      else
        store_logits(p, sums, t);
#pragma unroll
      for (int k = 0; k < (kTiles * 2 - 1) * 16; ++k) sums[k] = sums[16 + k];
    }
    if (phase == kGateUp) {
      fence_proxy_async_shared();
      sync_consumers();
      if (thread.index == 0 && tiles > 0) {
        const int strip_bytes = p.x_rows() * 8 * static_cast<int>(sizeof(bf16));
        bulk_store(reinterpret_cast<char*>(p.activated) + static_cast<int64_t>(piece.strip) * strip_bytes,
                   shared_address(memory.exchange), piece.strips * strip_bytes);
        bulk_store_commit();
      }
    }
  }
}

// Of a stage that had values in the ring of activations: who brings those of the next product waits for this.
__device__ __forceinline__ void end_in_x_ring(const Memory& memory, Stage& stage, int next) {
  bulk_store_wait();
  fence_proxy_async_shared();  // copies come there next
  if (memory.s->ranges[next].left > 0) mbarrier_arrive(memory.x_ring_free());
  stage.end();
}

__device__ __forceinline__ void normalise(const Params& p, const Memory& memory, Stage& stage, int next, const bf16* w,
                                          int from) {
  chain::Norm a;
  a.h = p.h;
  if (from >= 0) a.partials = partials_of(p, memory, from);  // else h is what the step was given
  a.w = w;
  a.x = p.x;
  a.rows = p.rows;
  a.width = p.width;
  a.eps = p.eps;
  const Thread thread;
  bf16* const x = reinterpret_cast<bf16*>(memory.x_data + kXRing / 2);
  for (int b = static_cast<int>(blockIdx.x); b < p.rows; b += static_cast<int>(gridDim.x)) {
    chain::add_norm_row(
        a, b, thread.index, kConsumers, reinterpret_cast<chain::Eight*>(memory.x_data), memory.s->warp_sums,
        [&] { stage.wait(); }, [] { sync_consumers(); },
        [&](int column, const chain::Four& four) {
          *reinterpret_cast<chain::Four*>(x + place_in_row(b, column)) = four;
        });
    fence_proxy_async_shared();
    sync_consumers();
    for (int i = thread.lane * kConsumerWarps + thread.warp; i < p.width / kBlockCols; i += kConsumers)
      store_piece(p.x, b, i * kBlockCols, x + i * kBlockCols);
    bulk_store_commit();
    bulk_store_wait();
    sync_consumers();
  }
  stage.wait();
  end_in_x_ring(memory, stage, next);
}

template <int kDh, int kHalves>
__device__ __forceinline__ void consume(const Params& p, const Memory& memory, const Walk& walk, const Cursor& first) {
  Stage stage{p};
  Turn turn, x_turn;
  // Each piece of code stands here once: what a layer executes must stay small, since it runs once a layer, and
  // instructions that left the caches cost more than they do.
  for (int i = -1;; ++i) {
    const int layer = i / 4, phase = phase_of(p, i);
    if (i >= 0) {
      if (memory.s->ranges[phase].left > 0)
        stage.open = true;  // activations come when it is, and nothing happens before
      else
        stage.wait();
      multiply(p, memory, phase, turn, x_turn);
      if (phase == kHead) break;
      stage.end();
    }
    if (phase == kQkv) {
      attend<kDh, kHalves>(p, layer, memory, walk, first, turn, [&] { stage.wait(); });
      stage.wait();
      end_in_x_ring(memory, stage, kOutput);
    } else if (phase != kGateUp) {
      const int next = (i + 1) / 4;  // layer of the product that follows
      normalise(p, memory, stage, phase_of(p, i + 1),
                phase == kOutput ? p.layers[layer].mlp_norm
                : next < p.depth ? p.layers[next].attention_norm
                                 : p.norm,
                i < 0 ? -1 : phase);
    }
  }
}

template <int kDh, int kHalves>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const __grid_constant__ Params p) {
  extern __shared__ char raw[];
  char* const base = raw + (1024 - shared_address(raw) % 1024) % 1024;
  Memory memory;
  memory.ring_data = base;
  memory.x_data = base + kSlots * kSlotBytes;
  memory.ring = shared_address(memory.ring_data);
  memory.x = shared_address(memory.x_data);
  memory.exchange = reinterpret_cast<float4*>(memory.x_data + kXRing);
  memory.s = reinterpret_cast<Shared*>(memory.x_data + kXRing + kExchange);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    memory.s->in_flight = kInFlight;
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(memory.full(i), 2);
      mbarrier_init(memory.empty(i), kConsumers);
    }
    for (int i = 0; i < kXSlots; ++i) {
      mbarrier_init(memory.x_full(i), 1);
      mbarrier_init(memory.x_empty(i), kRanks * kConsumerWarps);
    }
    mbarrier_init(memory.x_ring_free(), kConsumers);
    mbarrier_init(memory.x_rings_free(), kRanks);
    fence_barrier_init();
  }
  chain::read_lengths(p.attention, memory.s->lengths, lane);
  if (threadIdx.x < kPhases) memory.s->ranges[threadIdx.x] = Range(p.products[threadIdx.x].m);
  for (const Product& product : p.products)
    if (!product.m.whole)
      for (int i = static_cast<int>(threadIdx.x); i < product.m.split.groups; i += kThreads)
        memory.s->counts[product.first_count + i] = static_cast<uint8_t>(product.m.split.count(i));
  cluster_sync();
  const Walk walk = {p.attention, memory.s->lengths};
  const Cursor first = walk.first(lane);
  if (warp < kConsumerWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    consume<kDh, kHalves>(p, memory, walk, first);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    if (warp < kConsumerWarps + 2) {
      Streamer stream{p, memory, lane, warp - kConsumerWarps};
      for (int i = 0; i <= 4 * p.depth; ++i) {
        const int layer = i / 4, phase = phase_of(p, i);
        stream.product(p.products[phase].m, memory.s->ranges[phase], weights_of(p, layer, phase));
        if (phase == kQkv) stream.cache(p.layers[layer].kv, walk, first);
      }
    } else if (warp == kConsumerWarps + 2 && lane == 0) {
      bring_activations(p, memory);
    }
  }
  cluster_sync();  // other CTAs may still write or arrive here
}

}  // namespace
}  // namespace batch

namespace chain {

int cluster_count() {
  static const int count =
      clusters_at_once("decode", batch::decode_kernel<128, 1>, batch::kRanks, batch::kThreads, batch::kSharedBytes);
  return count;
}

bool can_decode_at_once(const Decoder& d) {
  const int64_t width = d.norm.dim(0), rows = 2 * width + d.layers[0].qkv.rows();  // of split products
  return cluster_count() > 0 && d.depth <= batch::kMaxLayers &&
         width * static_cast<int64_t>(sizeof(bf16)) <= batch::kXRing / 2 &&
         rows / (Split::kStrips * kStripRows) + 3 <= batch::kMaxGroups;
}

void decode_at_once(Stream stream, const Decoder& d, const DecodeStep& step, const Attention& attention,
                    const Operands& operands) {
  const auto values = [](const Tensor& t) { return static_cast<bf16*>(t.data); };
  batch::Params p = {};
  p.rows = attention.rows;
  p.depth = static_cast<int>(d.depth);
  p.width = static_cast<int>(d.norm.dim(0));
  p.eps = d.eps;
  int groups = 0;
  const auto product = [&](const Weight& w, bool whole, const bf16* x) {
    const batch::Product made = {matrix_of(w, whole), x, static_cast<int>(w.rows()), groups};
    if (!whole) groups += made.m.split.groups;
    return made;
  };
  const DecoderLayer& first = d.layers[0];
  p.products[batch::kQkv] = product(first.qkv, false, operands.x);
  p.products[batch::kOutput] = product(first.output, false, attention.y);
  p.products[batch::kGateUp] = product(first.gate_up, true, operands.x);
  p.products[batch::kDown] = product(first.down, false, operands.activated);
  p.products[batch::kHead] = product(d.head, true, operands.x);
  p.attention = attention;
  p.h = values(step.h);
  p.x = operands.x;
  p.activated = operands.activated;
  p.partials = operands.partials;
  p.logits = step.logits.as<float>();
  p.norm = values(d.norm);
  p.head = values(d.head.data[0]);
  p.arrived = operands.arrived;
  p.published = p.arrived + 1;
  for (int64_t i = 0; i < d.depth; ++i) {
    const DecoderLayer& l = d.layers[i];
    p.layers[i] = {values(l.attention_norm),
                   values(l.mlp_norm),
                   values(l.qkv.bias[0]),
                   {values(l.qkv.data[0]), values(l.output.data[0]), values(l.gate_up.data[0]), values(l.down.data[0])},
                   values(d.kv_layers[i])};
  }

  const bool wide = attention.group() > 8;
  const auto kernel = attention.head_dim == 64 ? (wide ? batch::decode_kernel<64, 2> : batch::decode_kernel<64, 1>)
                                               : (wide ? batch::decode_kernel<128, 2> : batch::decode_kernel<128, 1>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, batch::kSharedBytes), "decode");
  const int counters = 1 + attention.rows * attention.kv_heads;
  check(cudaMemsetAsync(p.arrived, 0, counters * sizeof(*p.arrived), stream), "decode");
  // Cooperative: CTAs wait for each other, and other kernels have the device until all of them fit.
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {batch::kRanks, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(batch::kRanks * cluster_count()));
  config.blockDim = dim3(batch::kThreads);
  config.dynamicSmemBytes = batch::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, p), "decode");
}

}  // namespace chain
}  // namespace saccade::cuda
