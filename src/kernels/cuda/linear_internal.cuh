// What both kernels of linear() share: the arguments, and the epilogue of a warp's fragments.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {

struct LinearArgs {
  const bf16* x;     // [rows, cols]
  const bf16* w;     // strips of w_blocks blocks each
  const bf16* bias;  // [outs], or null
  void* y;
  int rows, cols, outs;  // T, K, N
  int w_blocks;
  LinearOut out;

  // Columns of y.
  __host__ __device__ int width() const { return out == LinearOut::kGateUpSilu ? outs / 2 : outs; }
};

// Hopper (linear_hopper.cu). It needs rows of x and y of a multiple of 16 bytes.
void linear_hopper(Stream stream, const LinearArgs& args);

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}
__device__ __forceinline__ float round_bf16(float v) { return __bfloat162float(__float2bfloat16_rn(v)); }

__device__ __forceinline__ float gated(float gate, float up) {
  const float g = round_bf16(gate);
  return round_bf16(__fdividef(g, 1 + __expf(-g))) * round_bf16(up);
}

// Four lanes of a row hold words w[0..3] of four chunks each; afterwards each holds one chunk: lane q chunk q.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t a = __shfl_xor_sync(~0u, odd ? w[0] : w[1], 1), b = __shfl_xor_sync(~0u, odd ? w[2] : w[3], 1);
  (odd ? w[0] : w[1]) = a;
  (odd ? w[2] : w[3]) = b;
  const uint32_t c = __shfl_xor_sync(~0u, high ? w[0] : w[2], 2), d = __shfl_xor_sync(~0u, high ? w[1] : w[3], 2);
  (high ? w[0] : w[2]) = c;
  (high ? w[1] : w[3]) = d;
}

// Eight values of y from `column` on. kPieces: the width is a multiple of 8, so that they are 16 aligned bytes of a
// row; otherwise columns beyond the width are left alone.
template <bool kPieces>
__device__ __forceinline__ uint4 load_chunk(const bf16* y, int width, int column) {
  if constexpr (kPieces) return *reinterpret_cast<const uint4*>(y);
  uint4 v = {};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i < width) reinterpret_cast<bf16*>(&v)[i] = y[i];
  return v;
}
template <bool kPieces>
__device__ __forceinline__ void store_chunk(bf16* y, int width, int column, const uint32_t (&w)[4]) {
  if constexpr (kPieces) {
    *reinterpret_cast<uint4*>(y) = make_uint4(w[0], w[1], w[2], w[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < width) y[i] = __ushort_as_bfloat16(static_cast<unsigned short>(w[i / 2] >> (i % 2 * 16)));
  }
}

// Adds the bias to a warp's sums. d: per 8 columns from `column` on, what m16n8 leaves in a lane: (row, 2q), (row,
// 2q+1), (row+8, 2q), (row+8, 2q+1), where q = lane % 4.
template <int kChunks>
__device__ __forceinline__ void add_bias(const LinearArgs& args, float (&d)[4 * kChunks], int column) {
  const int first = column + static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int n = first + 8 * c;
    const float b0 = n < args.outs ? __bfloat162float(args.bias[n]) : 0;
    const float b1 = n + 1 < args.outs ? __bfloat162float(args.bias[n + 1]) : 0;
    d[4 * c] += b0;
    d[4 * c + 1] += b1;
    d[4 * c + 2] += b0;
    d[4 * c + 3] += b1;
  }
}

// Writes a warp's 16 x 8 kChunks sums, whose lane holds row `row` and row + 8, in 16-byte pieces.
template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_sums(const LinearArgs& args, const float (&d)[4 * kChunks], int row, int column) {
  constexpr int kUnits = kChunks / 4 * 2;  // 32 columns of one row for four lanes, 16 bytes for each
  constexpr int kBatch = kUnits > 10 ? kUnits / 2 : kUnits;
  const int lane_column = column + static_cast<int>(threadIdx.x % 4) * 8, width = args.outs;
  bf16* y = static_cast<bf16*>(args.y) + static_cast<int64_t>(row) * width + lane_column;
  const auto inside = [&](int u) { return row + u % 2 * 8 < args.rows && lane_column + u / 2 * 32 < width; };
  const auto place = [&](int u) { return y + static_cast<int64_t>(u % 2 * 8) * width + u / 2 * 32; };
#pragma unroll
  for (int u0 = 0; u0 < kUnits; u0 += kBatch) {
    uint4 old[kBatch] = {};
    if (args.out == LinearOut::kAdd) {  // many loads in flight
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (inside(u0 + i))
          old[i] = load_chunk<kPieces>(place(u0 + i), width, lane_column + (u0 + i) / 2 * 32);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int u = u0 + i, h = u % 2;
      uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* sums = d + (u / 2 * 4 + j) * 4 + h * 2;
        w[j] = pack_bf16(sums[0], sums[1]);
      }
      transpose_quad(w);
      if (args.out == LinearOut::kAdd) {
        const uint32_t before[4] = {old[i].x, old[i].y, old[i].z, old[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 a = unpack_bf16(before[j]), b = unpack_bf16(w[j]);
          w[j] = pack_bf16(a.x + b.x, a.y + b.y);
        }
      }
      if (inside(u)) store_chunk<kPieces>(place(u), width, lane_column + u / 2 * 32, w);
    }
  }
}

template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_gated(const LinearArgs& args, const float (&d)[4 * kChunks], int row,
                                            int column) {
  const int width = args.outs / 2;
#pragma unroll
  for (int g = 0; g < kChunks / 8; ++g)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float *gate = d + (g * 8 + 2 * j) * 4 + h * 2, *up = gate + 4;
        w[j] = pack_bf16(gated(gate[0], up[0]), gated(gate[1], up[1]));
      }
      transpose_quad(w);
      const int c = column / 2 + g * 32 + static_cast<int>(threadIdx.x % 4) * 8, r = row + h * 8;
      if (r < args.rows && c < width)
        store_chunk<kPieces>(static_cast<bf16*>(args.y) + static_cast<int64_t>(r) * width + c, width, c, w);
    }
}

template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_floats(const LinearArgs& args, const float (&d)[4 * kChunks], int row,
                                             int column) {
  const int64_t width = args.outs;
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int n = column + 8 * c + static_cast<int>(threadIdx.x % 4) * 2, r = row + h * 8;
      if (r >= args.rows || n >= width) continue;
      float* y = static_cast<float*>(args.y) + r * width + n;
      const float2 v = {round_bf16(d[4 * c + 2 * h]), round_bf16(d[4 * c + 2 * h + 1])};
      if constexpr (kPieces) {
        *reinterpret_cast<float2*>(y) = v;
      } else {
        y[0] = v.x;
        if (n + 1 < width) y[1] = v.y;
      }
    }
}

template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_fragments(const LinearArgs& args, float (&d)[4 * kChunks], int row, int column) {
  if (args.bias) add_bias<kChunks>(args, d, column);
  if (args.out == LinearOut::kGateUpSilu) {
    if constexpr (kChunks % 8 == 0) write_gated<kChunks, kPieces>(args, d, row, column);
  } else if (args.out == LinearOut::kFloat) {
    write_floats<kChunks, kPieces>(args, d, row, column);
  } else {
    write_sums<kChunks, kPieces>(args, d, row, column);
  }
}

}  // namespace saccade::cuda
