// Pieces of segment_attention that its kernels share.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {

// For heads of 80 values on Hopper: segments of more than 64 rows, and those of at most 64; others are left alone.
bool segment_flash_fits(const Tensor& qkv);
void segment_attention_flash(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                             int64_t longest, float scale, const Tensor& y);
bool segment_windows_fit(const Tensor& qkv);
void segment_attention_windows(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                               float scale, const Tensor& y);
inline constexpr int kWindowRows = 64;

inline constexpr float kLog2E = 1.44269504f;  // exp(x) = exp2(x * kLog2E)

#ifdef __CUDACC__

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Turns two, four or eight values each of the first half (a) and the second half (b) of a head.
__device__ __forceinline__ void turn_two(uint32_t& a, uint32_t& b, float2 cos, float2 sin) {
  const float2 x = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(a));
  const float2 y = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(b));
  a = pack_bf16(fmaf(x.x, cos.x, -(y.x * sin.x)), fmaf(x.y, cos.y, -(y.y * sin.y)));
  b = pack_bf16(fmaf(y.x, cos.x, x.x * sin.x), fmaf(y.y, cos.y, x.y * sin.y));
}

__device__ __forceinline__ void turn_four(uint2& a, uint2& b, const float4& cos, const float4& sin) {
  turn_two(a.x, b.x, {cos.x, cos.y}, {sin.x, sin.y});
  turn_two(a.y, b.y, {cos.z, cos.w}, {sin.z, sin.w});
}

__device__ __forceinline__ void turn_eight(uint4& a, uint4& b, const float4* cos, const float4* sin) {
  turn_two(a.x, b.x, {cos[0].x, cos[0].y}, {sin[0].x, sin[0].y});
  turn_two(a.y, b.y, {cos[0].z, cos[0].w}, {sin[0].z, sin[0].w});
  turn_two(a.z, b.z, {cos[1].x, cos[1].y}, {sin[1].x, sin[1].y});
  turn_two(a.w, b.w, {cos[1].z, cos[1].w}, {sin[1].z, sin[1].w});
}

// Maximum and sum over the four lanes that share a row of an mma accumulator.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

#endif

}  // namespace saccade::cuda
