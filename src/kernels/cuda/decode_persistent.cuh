// What the parts of the persistent decode kernel share: its parameters, its shared memory, barriers and small helpers.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::persistent {

constexpr int kWarps = 8;              // that multiply
constexpr int kThreads = 32 * kWarps;  // of those warps
constexpr int kStreamThreads = 128;    // one of them streams weights: registers move by warpgroups
constexpr int kMaxRows = 8;            // columns of an mma
constexpr int kMaxGroup = 8;           // query heads of a kv head: rows of an mma that attention uses
constexpr int kPageBlocks = kWarps;    // a page of weights is one block (16 x 64) for each warp
constexpr int kPageBytes = kPageBlocks * kBlockBytes;
constexpr int kRing = 13;  // pages
// Pages on their way from memory, of which a longer queue would delay all other loads: while the stream is all there is
// to wait for, and between the products of qkv and of gate and up, when small loads are waited for.
constexpr int kInFlight = 3, kInFlightChain = 2;
constexpr int kAhead = 8;  // pages brought to the L2 cache, one in kPace cycles, while the ring is full
constexpr unsigned kPace = 2000;
constexpr int kSumBuffers = 4;                   // strips whose sums over warps can be pending
constexpr int kScoreStride = kKvPageTokens + 8;  // floats; free of bank conflicts
constexpr int kMaxSplits = 32;                   // parts of a sequence that attend apart: one lane each when combined
constexpr int kMaxCtas = 160;
constexpr int kMaxLayers = 128;

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

  bf16 *q, *attended, *activated;  // [8, H*Dh] twice, [8,F]
  float* partial;                  // [8, K, kMaxSplits, kMaxGroup, Dh]
  float2* partial_top;             // [8, K, kMaxSplits, kMaxGroup]: highest score and sum
  unsigned *arrived, *left;        // CTAs at barriers, CTAs that ended; zero between launches

  int rows, depth, width, heads, kv_heads, head_dim, ffn, vocabulary, max_pages;
  float eps, scale;
  int blocks[kPhases];                   // along K
  int rounds[kPhases];                   // strips that every share has: every grid-th of the first ones
  uint16_t rest[kPhases][kMaxCtas + 1];  // those behind them: of each share, rest[i] .. rest[i + 1]
  LayerView layers[kMaxLayers];
};

struct Shared {
  uint8_t ring[kRing][kPageBytes];
  union {
    float4 sums[kSumBuffers][kWarps][32];
    float scores[2][kMaxGroup * kScoreStride];
  };
  uint64_t full[kRing], empty[kRing], sums_full[kSumBuffers], sums_empty[kSumBuffers];
  float squares[kWarps][kMaxRows];
  LayerView views[2];      // of this layer and the next: parameters that no SM has read yet come from far away
  volatile int in_flight;  // kInFlight or kInFlightChain
  int layer, views_ready;  // that the multiplying warps are in; that has its view
  int kv_lens[kMaxRows], parts[kMaxRows], part_pages[kMaxRows];
};

// A thread of the multiplying warps and where it is in the ring.
struct Thread {
  const Params& p;
  Shared& s;
  int warp, lane, group, quad;  // lane = 4 * group + quad
  int slot = 0, strips = 0;
  uint32_t parity = 0;
  unsigned barriers = 0;
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

// All CTAs: what any thread wrote before arrive() can be read after wait().
__device__ __forceinline__ void grid_arrive(Thread& t) {
  sync_warps();
  ++t.barriers;
  if (t.warp == 0 && t.lane == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(t.p.arrived) : "memory");
}
__device__ __forceinline__ void grid_wait(Thread& t) {
  if (t.warp == 0 && t.lane == 0) {
    unsigned n;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(t.p.arrived) : "memory");
    while (n < t.barriers * gridDim.x);
  }
  sync_warps();
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }
__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000); }
__device__ __forceinline__ uint32_t pack(float a, float b) {  // rounds
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ bool mbarrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// Of data that this kernel writes: from the L2 cache.
__device__ __forceinline__ uint4 load_16(const void* from) { return __ldcg(static_cast<const uint4*>(from)); }
__device__ __forceinline__ float load_bf16(const bf16* from) {
  return __uint_as_float(static_cast<uint32_t>(__ldcg(reinterpret_cast<const unsigned short*>(from))) << 16);
}

}  // namespace saccade::cuda::persistent
