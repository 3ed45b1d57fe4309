// One kernel per token: all layers of a dense decoder and its head, for up to 64 sequences, on Hopper.
//
// One CTA on each SM, launched cooperatively, walks through seven stages a layer
//   qkv | bias, rope, append, attention | output | add, norm | gate_up, silu | down | add, norm
// with a barrier of the grid behind each. Two warps stream what the CTA will need of weights and cache, of all stages
// and layers, through a ring of 10 slots of 16 KiB (21 MB over 132 SMs, 4.6 us of memory), and do not wait for
// barriers; only activations do, which another warp brings from the L2 cache.
//
// Products: x [64 rows, of which B count] is the operand of 64 rows of wgmma and a tile of 64 rows of weights the one
// of 64 columns. A CTA has a range of (group of rows, block of K) units of equal bytes, whose sums the next stage
// adds up, or of whole strips where an epilogue needs complete sums. Two warpgroups take turns at tiles.
// Bytes: all weights and the cache, once. Sums are in float, in an order that depends on N, K and the number of SMs.

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_batch_attention.cuh"
#include "kernels/cuda/decode_batch_stream.cuh"
#include "kernels/cuda/linear_wgmma.cuh"

namespace saccade::cuda {
namespace batch {
namespace {

__device__ __forceinline__ const bf16* weights_of(const Params& p, int layer, int phase) {
  return phase == kHead ? p.head : p.layers[layer].weights[phase];
}

// Sums of a tile of 4 strips: rows b and b + 8 of x, rows n and n + 1 of the matrix from 8 j + 2 (lane % 4) on.
struct Tile {
  int strip, strips, row, column, part;

  __device__ __forceinline__ Tile(const Thread& t, const Piece& piece, int tile)
      : strip(piece.strip + tile * kTileStrips),
        strips(piece.strips - tile * kTileStrips),
        row(t.warp % 4 * 16 + t.lane / 4),
        column(t.lane % 4 * 2),
        part(piece.part) {}
};

__device__ __forceinline__ void store_activated(const Params& p, const float (&sums)[32], const Tile& t) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    if (j / 2 >= t.strips) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float gate = chain::rounded(sums[4 * j + 2 * half + i]);
        const float silu = chain::rounded(__fdividef(gate, 1 + __expf(-gate)));
        y[i] = silu * chain::rounded(sums[4 * j + 4 + 2 * half + i]);
      }
      const int b = t.row + 8 * half;
      if (b < p.rows)
        *reinterpret_cast<uint32_t*>(p.activated + chain::tile_offset(b, (t.strip + j / 2) * 8 + t.column)) =
            pack_bf16(y[0], y[1]);
    }
  }
}
__device__ __forceinline__ void store_partials(const Params& p, const chain::Split& split, const float (&sums)[32],
                                               const Tile& t) {
  const chain::Partials partials = {p.partials, split, p.rows};
  float* const y = partials.of(t.part, t.row, t.strip * kStripRows + t.column);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < 8; j += 2)
      if (t.row + 8 * half < p.rows && j / 2 < t.strips)
        *reinterpret_cast<float4*>(y + (j / 2 * p.rows + 8 * half) * kStripRows) =
            make_float4(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1], sums[4 * j + 4 + 2 * half],
                        sums[4 * j + 4 + 2 * half + 1]);
}
__device__ __forceinline__ void store_logits(const Params& p, const float (&sums)[32], const Tile& t) {
  const int end = p.products[kHead].n, n = t.strip * kStripRows + t.column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (t.row + 8 * half >= p.rows) continue;
    float* const row = p.logits + static_cast<int64_t>(t.row + 8 * half) * end + n;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(float2) == 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j / 2 >= t.strips || n + 8 * j >= end) continue;
      const float2 v = {chain::rounded(sums[4 * j + 2 * half]), chain::rounded(sums[4 * j + 2 * half + 1])};
      if (aligned && n + 8 * j + 1 < end) {
        *reinterpret_cast<float2*>(row + 8 * j) = v;
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

// Sums of `kMine` tiles of this warpgroup, every other one of the piece's. Products of one step are queued while those
// of the step before run; of one tile in two sums, since each waits for the one before in its sum.
template <int kMine>
__device__ __forceinline__ void sum_piece(const Thread& thread, const Memory& memory, const Piece& piece, Turn& turn,
                                          Turn& x_turn, float (&sums)[kTiles][32]) {
  constexpr int kSteps = kBlockCols / 16;
  const int tiles = piece.tiles();
  int held[kTiles] = {}, x_held = -1;  // slots of the step before
  const auto release = [&] {
    if (thread.lane != 0 || x_held < 0) return;
#pragma unroll
    for (int i = 0; i < kMine; ++i) free_slot(memory, held[i]);
    mbarrier_arrive(memory.x_empty(x_held));
  };
  for (int block = piece.begin; block < piece.end; block += kSlotBlocks) {
    int slots[kTiles];
    uint32_t w[kTiles];
    mbarrier_wait(memory.x_full(x_turn.slot), x_turn.parity);
    const uint32_t x = low_half(memory.x + x_turn.slot * kSlotBlocks * kXBytes);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      Turn t = turn;
      t.advance(2 * i + thread.warp / 4, kSlots);
      slots[i] = t.slot;
      w[i] = low_half(memory.ring + t.slot * kSlotBytes);
      mbarrier_wait(memory.full(t.slot), t.parity);
    }
    if (kMine > 0 && block + 1 < piece.end) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int half = 0; half < kSlotBlocks; ++half)
#pragma unroll
          for (int i = 0; i < kMine; ++i)
            wgmma<64>(sums[kMine == 1 ? half : i], descriptor(x + half * (kXBytes >> 4) + 2 * k),
                      descriptor(w[i] + half * (kTileBytes >> 4) + 2 * k), 1);
      wgmma_commit();
      wgmma_wait<1, 0>();
    } else if (kMine > 0) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int i = 0; i < kMine; ++i) wgmma<64>(sums[i], descriptor(x + 2 * k), descriptor(w[i] + 2 * k), 1);
      wgmma_commit();
      wgmma_wait<1, 1>();
    }
    release();
#pragma unroll
    for (int i = 0; i < kMine; ++i) held[i] = slots[i];
    x_held = x_turn.slot;
    turn.advance(tiles, kSlots);
    x_turn.advance(1, kXSlots);
  }
  if (kMine > 0) wgmma_wait<0, 2>();
  release();
  if (kMine == 1)
#pragma unroll
    for (int i = 0; i < 32; ++i) sums[0][i] += sums[1][i];
}

__device__ __forceinline__ void multiply(const Params& p, const Memory& memory, int phase, Turn& turn, Turn& x_turn) {
  const chain::Matrix& m = p.products[phase].m;
  const Thread thread;
  const int group = thread.warp / 4;
  Range range = memory.s->ranges[phase];
  Piece piece;
  while (range.next(m, piece)) {
    float sums[kTiles][32];
#pragma unroll
    for (auto& tile : sums)
#pragma unroll
      for (float& v : tile) v = 0;
    const int tiles = piece.tiles(), mine = (tiles + 1 - group) / 2;
    if (mine == 2)
      sum_piece<2>(thread, memory, piece, turn, x_turn, sums);
    else if (mine == 1)
      sum_piece<1>(thread, memory, piece, turn, x_turn, sums);
    else
      sum_piece<0>(thread, memory, piece, turn, x_turn, sums);
#pragma unroll 1  // one copy of the code
    for (int tile = group; tile < tiles; tile += 2) {
      const Tile t(thread, piece, tile);
      if (phase == kGateUp)
        store_activated(p, sums[0], t);
      else if (phase == kHead)
        store_logits(p, sums[0], t);
      else
        store_partials(p, m.split, sums[0], t);
#pragma unroll
      for (int i = 0; i < 32; ++i) sums[0][i] = sums[kTiles - 1][i];
    }
  }
}

// Of a stage that had values in the ring of activations: who brings those of the next product waits for this.
__device__ __forceinline__ void end_in_x_ring(const Memory& memory, Stage& stage, int next) {
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
  for (int b = static_cast<int>(blockIdx.x); b < p.rows; b += static_cast<int>(gridDim.x)) {
    chain::add_norm_row(
        a, b, thread.index, kConsumers, reinterpret_cast<chain::Eight*>(memory.x_data), memory.s->warp_sums,
        [&] { stage.wait(); }, [] { sync_consumers(); });
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
  memory.s = reinterpret_cast<Shared*>(memory.x_data + kXRing);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      mbarrier_init(memory.full(i), 2);
      mbarrier_init(memory.empty(i), 128);
    }
    for (int i = 0; i < kXSlots; ++i) {
      mbarrier_init(memory.x_full(i), 1);
      mbarrier_init(memory.x_empty(i), kConsumerWarps);
    }
    mbarrier_init(memory.x_ring_free(), kConsumers);
    fence_barrier_init();
  }
  chain::read_lengths(p.attention, memory.s->lengths, lane);
  if (threadIdx.x < kPhases) memory.s->ranges[threadIdx.x] = Range(p.products[threadIdx.x].m);
  for (const Product& product : p.products)
    if (!product.m.whole)
      for (int i = static_cast<int>(threadIdx.x); i < product.m.split.groups; i += kThreads)
        memory.s->counts[product.first_count + i] = static_cast<uint8_t>(product.m.split.count(i));
  __syncthreads();
  const Walk walk = {p.attention, memory.s->lengths};
  const Cursor first = walk.first(lane);
  if (warp < kConsumerWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    return consume<kDh, kHalves>(p, memory, walk, first);
  }
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

}  // namespace
}  // namespace batch

namespace chain {

bool can_decode_at_once(const Decoder& d) {
  const int64_t width = d.norm.dim(0), rows = 2 * width + d.layers[0].qkv.rows();  // of split products
  return d.depth <= batch::kMaxLayers && width * static_cast<int64_t>(sizeof(bf16)) <= batch::kXRing &&
         rows / (batch::kTileStrips * kStripRows) + 3 <= batch::kMaxGroups;
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
  const auto product = [&](const Weight& w, Cut cut, const bf16* x) {
    const batch::Product made = {matrix_of(w, cut), x, static_cast<int>(w.rows()), groups};
    if (cut != Cut::kWhole) groups += made.m.split.groups;
    return made;
  };
  const DecoderLayer& first = d.layers[0];
  p.products[batch::kQkv] = product(first.qkv, Cut::kFourStrips, operands.x);
  p.products[batch::kOutput] = product(first.output, Cut::kFourStrips, attention.y);
  p.products[batch::kGateUp] = product(first.gate_up, Cut::kWhole, operands.x);
  p.products[batch::kDown] = product(first.down, Cut::kEightStrips, operands.activated);
  p.products[batch::kHead] = product(d.head, Cut::kWhole, operands.x);
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
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(sm_count()));
  config.blockDim = dim3(batch::kThreads);
  config.dynamicSmemBytes = batch::kSharedBytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, p), "decode");
}

}  // namespace chain
}  // namespace saccade::cuda
