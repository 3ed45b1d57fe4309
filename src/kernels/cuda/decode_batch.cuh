// What the parts of the batch decode kernel share: its parameters, its shared memory, its ring and its stages.
#pragma once

#include "kernels/cuda/decode_rows.cuh"
#include "kernels/cuda/decode_spans.cuh"

namespace saccade::cuda::batch {

using chain::bf16;
using chain::Cursor;
using chain::kStepPages;
using chain::Walk;

constexpr int kRanks = chain::kClusterCtas;
constexpr int kConsumers = 256;  // two warpgroups
constexpr int kConsumerWarps = kConsumers / 32;
constexpr int kThreads = kConsumers + 128;  // two warps stream weights and cache, one brings activations
constexpr int kTileStrips = 4;              // 64 rows of weights: a tile of wgmma
constexpr int kSlotBlocks = 2;
constexpr int kTileBytes = kTileStrips * kBlockBytes;
constexpr int kSlotBytes = kSlotBlocks * kTileBytes;  // also the keys or values of a page at Dh = 128
constexpr int kSlots = 10;
// Slots on their way from memory at a time; fewer while what CTAs tell each other would queue behind them. A warpgroup
// may wait for a slot that the other alone had last; a barrier tells a turn from the one before only, so that turn must
// have landed. It has: this warpgroup had one of the two slots before, which was asked for when all but kInFlight of
// those before it were there.
constexpr int kInFlight = 4, kInFlightBetween = 2;
static_assert(kInFlight + 2 <= kSlots);
constexpr int kTiles = 2;  // of a warpgroup at a time
constexpr int kPassStrips = 2 * kTiles * kTileStrips;
constexpr int kXBytes = chain::kMaxRows * kBlockCols * 2;  // of a block
constexpr int kXSlots = 6;
constexpr int kXRing = kXSlots * kXBytes;
constexpr int kExchange = 2 * 128 * 16 * static_cast<int>(sizeof(float));  // half of a tile's sums of each warpgroup
static_assert(chain::Split::kStrips == kRanks * kTileStrips);
constexpr int kMaxLayers = 96;
constexpr int kLayerStages = 7;
constexpr int kMaxGroups = 512;  // of a layer's split products

enum Phase { kQkv, kOutput, kGateUp, kDown, kHead, kPhases };

// A product of all layers: its matrices' shape, and where its activations are.
struct Product {
  chain::Matrix m;          // without its weights
  const bf16* x = nullptr;  // tiles [K/64,64,64]
  int n = 0;
  int first_count = 0;  // in Shared::counts
};

struct LayerView {
  const bf16 *attention_norm, *mlp_norm, *bias;
  const bf16* weights[4];  // by phase
  bf16* kv;
};

struct Params {
  int rows, depth, width;
  float eps;
  Product products[kPhases];
  chain::Attention attention;  // kv is in the layers
  bf16 *h, *x, *activated;     // [B,D]; tiles of [B,D]; [F/8,x_rows(),8]
  float *partials, *logits;
  const bf16 *norm, *head;
  unsigned* arrived;    // CTAs at the ends of all stages so far
  unsigned* published;  // [B,K]: spans in `attention.sums` so far, of all layers
  LayerView layers[kMaxLayers];

  // Of activations that products read: B in steps of 8.
  __device__ __forceinline__ int x_rows() const { return (rows + 7) / 8 * 8; }
};

// A ring's slot and the parity of its turn.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int by, int slots) {
    slot += by;
    if (slot >= slots) {
      slot -= slots;
      parity ^= 1;
    }
  }
};

// Rows of W and blocks of K that are summed in one go.
struct Piece {
  int strip, strips, begin, end;
  int part;  // of the group's partial sums

  __device__ __forceinline__ int tiles() const { return (strips + kTileStrips - 1) / kTileStrips; }
};

// What a CTA has of a product that is left. Its cluster's ranks have the same blocks of K, since they get activations
// together, and each its own strips, of which the last may have none.
struct Range {
  int left = 0;                         // pieces of whole strips, or units of the split
  int strip = 0, strips = 0, step = 0;  // of the next piece on; strips of a piece
  int begin = 0, part = 0;              // its first block; its place among its group's

  __device__ __forceinline__ explicit Range(const chain::Matrix& m) {
    const int share = static_cast<int>(blockIdx.x) / kRanks, rank = static_cast<int>(blockIdx.x) % kRanks;
    if (share >= m.split.shares) return;
    const int units = m.whole ? m.strips : m.split.units(), cursor = units * share / m.split.shares;
    const int count = units * (share + 1) / m.split.shares - cursor;
    if (m.whole) {
      left = (count + kRanks * kPassStrips - 1) / (kRanks * kPassStrips);
      strip = cursor + count * rank / kRanks, strips = cursor + count * (rank + 1) / kRanks - strip;
      step = (strips + left - 1) / left;
    } else {
      const int group = cursor / m.blocks;
      left = count;
      strip = (group * kRanks + rank) * kTileStrips, strips = m.strips - strip, step = kTileStrips;
      begin = cursor % m.blocks, part = share - m.split.first(group);
    }
  }
  __device__ __forceinline__ bool next(const chain::Matrix& m, Piece& p) {
    if (left <= 0) return false;
    p = {strip, max(0, min(step, strips)), begin, m.whole ? m.blocks : min(m.blocks, begin + left), part};
    const int strips_on = m.whole ? step : chain::Split::kStrips;
    left -= m.whole ? 1 : p.end - p.begin;
    strip += strips_on, strips -= strips_on;
    begin = part = 0;
    return true;
  }
};

// Behind the rings (that of activations is free during attention and norms) and what warpgroups exchange.
struct Shared {
  uint64_t full[kSlots], empty[kSlots], x_full[kXSlots], x_empty[kXSlots];
  uint64_t x_ring_free, x_rings_free;  // of what attention and norms have there; in both CTAs of the cluster
  float warp_sums[kConsumerWarps];
  int in_flight;  // kInFlight or kInFlightBetween, by atomics
  chain::Lengths lengths;
  Range ranges[kPhases];       // of this CTA
  uint8_t counts[kMaxGroups];  // clusters of each group
};
constexpr int kSharedBytes = 1024 + kSlots * kSlotBytes + kXRing + kExchange + static_cast<int>(sizeof(Shared));
static_assert(kSharedBytes <= 227 * 1024);

struct Memory {
  uint32_t ring, x;
  char *ring_data, *x_data;  // the same places
  float4* exchange;          // [2][4][128]
  Shared* s;

  __device__ __forceinline__ uint32_t full(int slot) const { return shared_address(&s->full[slot]); }
  __device__ __forceinline__ uint32_t empty(int slot) const { return shared_address(&s->empty[slot]); }
  __device__ __forceinline__ uint32_t x_full(int slot) const { return shared_address(&s->x_full[slot]); }
  __device__ __forceinline__ uint32_t x_empty(int slot) const { return shared_address(&s->x_empty[slot]); }
  __device__ __forceinline__ uint32_t x_ring_free() const { return shared_address(&s->x_ring_free); }
  __device__ __forceinline__ uint32_t x_rings_free() const { return shared_address(&s->x_rings_free); }
};

__device__ __forceinline__ chain::Partials partials_of(const Params& p, const Memory& memory, int phase) {
  const Product& product = p.products[phase];
  return {p.partials, product.m.split, p.rows, memory.s->counts + product.first_count};
}

// By one lane of each of the warps that have read the slot, four or eight.
__device__ __forceinline__ void free_slot(const Memory& memory, int slot, int warps) {
  mbarrier_arrive(memory.empty(slot), kConsumers / warps);
}

// A row of tiles on its way through shared memory: pieces of 64 columns in the order of the tiles' row b.
__device__ __forceinline__ int place_in_row(int b, int column) {
  return column / kBlockCols * kBlockCols + swizzled(b % 8, column % kBlockCols) - b % 8 * kBlockCols;
}
// One piece, from `column` on.
__device__ __forceinline__ void store_piece(bf16* tiles, int b, int column, const bf16* from) {
  bulk_store(tiles + column * chain::kMaxRows + b * kBlockCols, shared_address(from), kBlockCols * sizeof(bf16));
}

// This thread, read anew by each stage: else what all stages compute of it is computed once, before the layers, and
// kept in local memory, which is slow beside so much shared memory.
struct Thread {
  int index, warp, lane;

  __device__ __forceinline__ Thread() {
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    warp = index / 32, lane = index % 32;
  }
};

__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }
__device__ __forceinline__ void sync_warpgroup(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(kConsumers / 2) : "memory");
}
// Of the consumers, one thread.
__device__ __forceinline__ void allow_in_flight(const Memory& memory, int slots) {
  if (threadIdx.x == 0) atomicExch(&memory.s->in_flight, slots);
}

// ---- Stages. A stage may read what earlier ones wrote once all CTAs have arrived at their ends.

__device__ __forceinline__ unsigned load_acquire(const unsigned* from) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// What this thread and those it has met stored by bulk_store and waited for is written by then. A release would wait
// for the copies on their way as well: 2.5 us with 64 KB of them.
__device__ __forceinline__ void add_relaxed(unsigned* to, unsigned v) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
// One thread: until `stages` stages are done.
__device__ __forceinline__ void wait_stages(const Params& p, int stages) {
  const unsigned all = static_cast<unsigned>(stages) * gridDim.x;
  while (load_acquire(p.arrived) < all) {
  }
}

// The stage that the consumers of a CTA are in; all of them call its functions. Each stage is waited for: an end before
// its time would be counted for another.
struct Stage {
  const Params& p;
  int index = 0;
  bool open = true;

  // Returns when the stages before it are done.
  __device__ __forceinline__ void wait() {
    if (open) return;
    if (threadIdx.x == 0) wait_stages(p, index);
    sync_consumers();
    open = true;
  }
  // Who brings activations fences: bulk copies read what was written, and write where shared memory was used.
  __device__ __forceinline__ void end() {
    bulk_store_wait();
    sync_consumers();
    if (threadIdx.x == 0) add_relaxed(p.arrived, 1);
    ++index;
    open = false;
  }
};

}  // namespace saccade::cuda::batch
