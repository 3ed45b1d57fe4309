// What the parts of the persistent decode kernel share: its parameters, its shared memory and small helpers.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::persistent {

// Of many rows pages are read ahead, activations brought and norms shared out otherwise than of few.
constexpr bool are_many(int rows) { return rows > 4; }

constexpr int kWarps = 8;                              // that multiply
constexpr int kThreads = 32 * kWarps;                  // of those warps
constexpr int kEnders = 2;                             // warps that add the sums of strips and store them, in turns
constexpr int kHelpers = 128;                          // one thread streams, a warp clears, two end strips
constexpr int kMaxRows = 8;                            // columns of an mma
constexpr int kMaxGroup = 8;                           // query heads of a kv head: rows of an mma that attention uses
constexpr int kPageBlocks = kWarps;                    // a page of weights is one block (16 x 64) for each warp
constexpr int kPageBytes = kPageBlocks * kBlockBytes;  // as many as 64 keys of 128
constexpr int kMaxRing = 13;                           // pages
// Pages on their way from memory, of which a longer queue would delay all other loads: while the stream is all there is
// to wait for, between the products of qkv and of gate and up, when small loads are waited for, and of the next layer
// before this one has ended everywhere, when others may still wait for the last of its weights.
constexpr int kInFlight = 4, kInFlightChain = 2;
constexpr int in_flight_ahead(int rows) { return are_many(rows) ? 2 : 1; }
// Of many rows: pages behind the ring that are asked for in the L2 cache while it is full, and cycles between two of
// them. Of few it is not full for long.
constexpr int kPagesAhead = 24;
constexpr unsigned kAheadCycles = 200;
constexpr int kScoreStride = kKvPageTokens + 8;  // floats; free of bank conflicts
constexpr int kMaxSplits = 32;                   // parts of a sequence that attend apart: one lane each when combined
constexpr int kMaxItems = 32;                    // such parts that a CTA attends to
constexpr int kMaxCombined = 8;                  // query heads of sequences that a CTA combines
constexpr int kMaxCtas = 160;
constexpr int kMaxLayers = 128;
constexpr int kTurns = 4;      // layers whose exchanged values have places of their own
constexpr int kMaxChunks = 2;  // of 8 values, of the hidden width, for each thread
constexpr int kMaxWidth = kMaxChunks * kThreads * 8;

// Activations are multiplied from shared memory: all of a norm; else of few rows tiles that take turns in two places,
// of many the blocks that each warp asks for, kXPages pages ahead.
constexpr int kTileChunks = 2;  // of 8 values, for each thread
constexpr int tile_columns(int rows) { return kTileChunks * kThreads * 8 / rows; }
constexpr int kXPages = 4;

// CTAs that share out the rows of norms, a cluster.
constexpr int norm_ctas(int rows) { return are_many(rows) ? 2 : 1; }

enum Phase { kQkv, kOutput, kGateUp, kDown, kHead, kPhases };

struct LayerView {
  const bf16 *attention_norm, *mlp_norm, *bias;
  const bf16* weights[4];  // by phase
  bf16* kv;
};

struct Params {
  bf16* h;  // [B,D]
  const float* cos_sin;
  const int *slots, *kv_lens, *page_table;
  float* logits;
  const bf16 *norm, *head;

  // Exchanged between CTAs (decode_persistent_exchange.cuh), of kTurns layers each: [kTurns, 8, width of a row].
  bf16 *qkv, *attended, *middle, *activated, *out;
  float* partial;         // [8, K, kMaxSplits, kMaxGroup, Dh]
  float2* partial_top;    // [8, K, kMaxSplits, kMaxGroup]: highest score and sum
  unsigned *turn, *left;  // of the first layer; CTAs that ended, zero between launches

  int rows, depth, width, heads, kv_heads, group_heads, head_dim, head_shift, qkv_rows, q_width, ffn, vocabulary;
  int max_pages;
  float eps, scale, inverse_width;
  int blocks[kPhases];                   // along K
  int ring, x_bytes;                     // shared memory: pages of the ring, bytes of activations
  int rounds[kPhases];                   // strips that every share has: every grid-th of the first ones
  uint16_t rest[kPhases][kMaxCtas + 1];  // those behind them: of each share, rest[i] .. rest[i + 1]
  LayerView layers[kMaxLayers];
};

// A kv head of a sequence and a run of its pages.
struct Item {
  int b, kv_head, part, page, end;
};
// A query head of a sequence: of all of them the number, the first of its parts (they are kMaxGroup apart), and how
// many it has.
struct Combined {
  int number, row, parts;
};

// Behind the ring and the activations.
struct Shared {
  float4 sums[kEnders][kWarps][32];
  union {
    float scores[2][kMaxGroup * kScoreStride];
    float4 combined[kWarps][32];
  };
  uint64_t full[kMaxRing], empty[kMaxRing], sums_full[kEnders], sums_empty[kEnders];
  // Of every other layer: its view is there, and no longer needed. Of each layer: its h has arrived, parts of attention
  // are combined, and what was read or old is cleared.
  uint64_t view_full[2], view_empty[2], arrived, combined_parts, cleared;
  uint64_t peer_rows, peer_free;  // of each norm: the other CTA's rows are there, it may be sent some
  uint64_t split;                 // how the sequences are split is there
  float squares[2][kWarps][kMaxRows];
  LayerView views[2];  // of this layer and the next: parameters that no SM has read yet come from far away
  int in_flight;       // pages, by atomics
  int kv_lens[kMaxRows], parts[kMaxRows], part_pages[kMaxRows], items, heads;
  Item item[kMaxItems];
  Combined head[kMaxCombined];
};

// Of a warp that takes part in products.
struct Lane {
  const Params& p;
  Shared& s;
  int lane, group, quad;  // lane = 4 * group + quad
  int turn;               // of the layer
  int strips = 0;         // so far
};
// A thread of the multiplying warps and where it is in the ring.
struct Thread : Lane {
  uint8_t *ring, *x;
  int warp, slot = 0, norms = 0;
  uint32_t parity = 0;

  // The next page of the ring, once it is there; and when this warp is done with it.
  __device__ __forceinline__ const uint8_t* wait_page() const {
    mbarrier_wait(shared_address(&s.full[slot]), parity);
    __syncwarp();
    return ring + slot * kPageBytes;
  }
  __device__ __forceinline__ int next_page() {
    const int taken = slot;
    if (++slot == p.ring) slot = 0, parity ^= 1;
    return taken;
  }
  // Not before the values are in registers: a load of shared memory can linger behind loads of global memory.
  __device__ __forceinline__ void free_page(int taken) const {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&s.empty[taken]));
  }
};

// The strips of a phase that this CTA multiplies. All CTAs read side by side.
struct Share {
  const bf16* w;
  int blocks, index, rounds, rest, count;

  __device__ __forceinline__ Share(const Params& p, int layer, int phase) {
    index = static_cast<int>(blockIdx.x);
    w = phase == kHead ? p.head : p.layers[layer].weights[phase];
    blocks = p.blocks[phase];
    rounds = p.rounds[phase];
    rest = p.rest[phase][index];
    count = rounds + p.rest[phase][index + 1] - rest;
  }
  __device__ __forceinline__ int strip(int i) const {
    return i < rounds ? i * static_cast<int>(gridDim.x) + index : rest + i - rounds;
  }
};

__device__ __forceinline__ void sync_warps() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }
__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000); }

}  // namespace saccade::cuda::persistent
