// How the CTAs of the persistent decode kernel hand values to each other: by the values themselves.
//
// A place whose bits are zero is empty; a zero travels as -0, which no product or sum notices. Who needs a value asks
// for it until it is there: one trip to the L2 cache after it was stored, where a barrier would take three (the stores
// before it must be seen, its counter, then the values). Every value is a word of its own, so that no order of loads
// and stores matters.
//
// Places are emptied by the CTA that fills them. All values of layer g - 2 have been read once a CTA has all of layer
// g's input: every CTA has then had all of layer g - 1's. A warp empties them (clear_exchange) and fences before this
// CTA publishes its share of gate and up, which all of layer g + 1 waits for; layer g + 2 uses the places again. Layers
// are counted on from launch to launch. Parts of attention are emptied in the layer itself, by the CTA that reads them.
#pragma once

#include "kernels/cuda/decode_persistent.cuh"

namespace saccade::cuda::persistent {

__device__ __forceinline__ bf16* of_turn(bf16* exchanged, int turn, int width) {
  return exchanged + (turn & (kTurns - 1)) * kMaxRows * width;
}

// ---- Values that are never empty.
__device__ __forceinline__ uint32_t filled(uint32_t pair) {
  if ((pair & 0xffff) == 0) pair |= 0x8000;
  return pair < 0x10000 ? pair | 0x80000000 : pair;
}
__device__ __forceinline__ float filled(float x) { return x == 0 ? -0.0f : x; }
__device__ __forceinline__ void publish(bf16* to, float x) {
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(to), "h"(static_cast<unsigned short>(bits ? bits : 0x8000))
               : "memory");
}
__device__ __forceinline__ void publish(bf16* to, uint32_t pair) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(filled(pair)) : "memory");
}
__device__ __forceinline__ void publish(float* to, float x, float y) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(filled(x)), "f"(filled(y)) : "memory");
}

// ---- Loads that may find empty places.
__device__ __forceinline__ uint4 load_16(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ float2 load_8(const float2* from) {
  float2 v;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from) : "memory");
  return v;
}
// Once it is there; with `given` it is, and may be zero.
__device__ __forceinline__ float wait_bf16(const bf16* from, bool given) {
  unsigned short v;
  do asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
  while (v == 0 && !given);
  return __uint_as_float(static_cast<uint32_t>(v) << 16);
}

// Whether one of the bf16 values is missing.
__device__ __forceinline__ bool missing(uint32_t pair) { return pair < 0x10000 || (pair & 0xffff) == 0; }
__device__ __forceinline__ bool missing(const uint4& v) {
  return missing(__vimin3_u16x2(__vimin3_u16x2(v.x, v.y, v.z), v.w, v.w));
}
// Whether one of the floats is missing.
__device__ __forceinline__ bool missing(const float4& v) {
  return __float_as_uint(v.x) == 0 || __float_as_uint(v.y) == 0 || __float_as_uint(v.z) == 0 ||
         __float_as_uint(v.w) == 0;
}
__device__ __forceinline__ bool missing(const float2& v) {
  return __float_as_uint(v.x) == 0 || __float_as_uint(v.y) == 0;
}

// Of this launch's first layer.
__device__ __forceinline__ int load_turn(const Params& p) {
  return static_cast<int>(*static_cast<const volatile unsigned*>(p.turn));
}

__device__ __forceinline__ void clear_16(void* at) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(at), "r"(0) : "memory");
}

// Query heads of sequences that this CTA combines: this one and every grid-th on. Those CTAs come first that have no
// part of a short sequence.
__device__ __forceinline__ int first_combined() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

// One warp empties what this CTA published in layer `old`, rows of earlier launches included.
__device__ __forceinline__ void clear_published(const Params& p, int lane, int old) {
#pragma unroll 1
  for (int phase = 0; phase < kHead; ++phase) {
    const Share share(p, 0, phase);
    bf16* const exchanged = phase == kQkv      ? p.qkv
                            : phase == kOutput ? p.middle
                            : phase == kGateUp ? p.activated
                                               : p.out;
    const int width = phase == kQkv ? p.qkv_rows : phase == kGateUp ? p.ffn : p.width;
    const int values = phase == kGateUp ? kStripRows / 2 : kStripRows;
    bf16* to = of_turn(exchanged, old, width) + lane / 2 * width + lane % 2 * 8;
    if (lane < 2 * kMaxRows && lane % 2 * 8 < values)
#pragma unroll 1
      for (int i = 0; i < share.count; ++i) clear_16(to + share.strip(i) * values);
  }
  bf16* attended = of_turn(p.attended, old, p.q_width) + lane * 8;
#pragma unroll 1
  for (int i = first_combined(); i < kMaxRows * p.heads; i += static_cast<int>(gridDim.x))
    if (lane * 8 < p.head_dim) clear_16(attended + i * p.head_dim);
}
// And the parts that this CTA combined.
__device__ __forceinline__ void clear_parts(const Params& p, const Shared& s, int lane) {
#pragma unroll 1
  for (int i = 0; i < s.heads; ++i) {
    const auto [number, row, parts] = s.head[i];
#pragma unroll 1
    for (int part = 0; part < parts; ++part)
      if (4 * lane < p.head_dim) clear_16(p.partial + int64_t{row + part * kMaxGroup} * p.head_dim + 4 * lane);
    if (lane < parts)
      asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %1};" ::"l"(p.partial_top + row + lane * kMaxGroup), "r"(0)
                   : "memory");
  }
}

__device__ __forceinline__ void bring_view(const Params& p, Shared& s, int lane, int layer) {
  if (lane > 0 || layer >= p.depth) return;
  s.views[layer & 1] = p.layers[layer];
  mbarrier_arrive(shared_address(&s.view_full[layer & 1]));
}

// One warp: clears in each layer what this CTA published two layers ago and what it combined, and brings the view of
// the next. Nobody can get two phases ahead of one who waits for the first of them, not even in a CTA without strips:
// the others need the next view, and this warp goes on when they are done with the one before.
__device__ __forceinline__ void clear_exchange(const Params& p, Shared& s, int first_turn) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int layer = 0; layer < p.depth; ++layer) {
    mbarrier_wait(shared_address(&s.arrived), layer & 1);
    if (layer > 0) mbarrier_wait(shared_address(&s.view_empty[(layer - 1) & 1]), (layer - 1) >> 1 & 1);
    clear_published(p, lane, first_turn + layer + kTurns - 2);
    if (s.heads > 0) {
      mbarrier_wait(shared_address(&s.combined_parts), layer & 1);
      clear_parts(p, s, lane);
    }
    __threadfence();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&s.cleared));
    bring_view(p, s, lane, layer + 1);
  }
}

}  // namespace saccade::cuda::persistent
