// Hopper's matrix instructions as segment_attention uses them: heads of 80 values, no swizzle.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/segment_attention.h"
#include "kernels/cuda/wgmma.cuh"

namespace saccade::cuda {

// A matrix in shared memory made of cores of 8 rows x 16 bytes, each 128 contiguous bytes. Cores follow each other at
// `along_k` bytes along the dimension that is summed, and at `across` bytes along the other one; that holds for rows of
// values along K (queries, keys) as well as for rows along N (values).
__device__ __forceinline__ uint64_t matrix(uint32_t address, uint32_t along_k, uint32_t across) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(along_k >> 4) << 16 |
         static_cast<uint64_t>(across >> 4) << 32;
}

// Keeps the compiler from moving uses of accumulators across a fence or a wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
// One arrival per warp.
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_address(barrier));
}

#define SACCADE_F8(d, i)                                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])

// d = a b^T or d += a b^T: a [64,16], b [64,16] or [128,16], both in shared memory.
__device__ __forceinline__ void wgmma_scores(float (&d)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : SACCADE_F8(d, 0), SACCADE_F8(d, 8), SACCADE_F8(d, 16), SACCADE_F8(d, 24)
      : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void wgmma_scores(float (&d)[64], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"
      "%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : SACCADE_F8(d, 0), SACCADE_F8(d, 8), SACCADE_F8(d, 16), SACCADE_F8(d, 24), SACCADE_F8(d, 32), SACCADE_F8(d, 40),
        SACCADE_F8(d, 48), SACCADE_F8(d, 56)
      : "l"(a), "l"(b), "r"(add));
}
// d += a b: a [64,16] in registers, b [16,80] in shared memory.
__device__ __forceinline__ void wgmma_values(float (&d)[40], const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}, {%40,%41,%42,%43}, %44, 1, 1, 1, 1;\n"
      : SACCADE_F8(d, 0), SACCADE_F8(d, 8), SACCADE_F8(d, 16), SACCADE_F8(d, 24), SACCADE_F8(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef SACCADE_F8

// Writes row lane / 4 + 8 r of a warp's share of d, divided by `total`, if `there`. Neighbours swap halves first, so
// that a warp writes whole sectors of 32 bytes.
__device__ __forceinline__ void store_row(const float (&d)[40], int r, float total, bf16* to, bool there) {
  const float share = __fdividef(1, total);
  const int lane = threadIdx.x % 32, odd = lane % 2;
#pragma unroll
  for (int i = 0; i < 40; i += 8) {  // two chunks of 8 values
    const uint32_t low = pack_bf16(d[i + 2 * r] * share, d[i + 2 * r + 1] * share);
    const uint32_t high = pack_bf16(d[i + 4 + 2 * r] * share, d[i + 5 + 2 * r] * share);
    const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? low : high, 1);
    if (there)
      *reinterpret_cast<uint2*>(to + 2 * i + odd * 8 + lane % 4 / 2 * 4) = odd ? uint2{other, high} : uint2{low, other};
  }
}

}  // namespace saccade::cuda
