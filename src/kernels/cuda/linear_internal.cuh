// What both kernels of linear() share: the arguments, and the epilogue of a warp's fragments.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/silu.cuh"

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

__device__ __forceinline__ __nv_bfloat162 as_pair(uint32_t bits) {
  return reinterpret_cast<const __nv_bfloat162&>(bits);
}
__device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 pair) { return reinterpret_cast<const uint32_t&>(pair); }

__device__ __forceinline__ uint32_t gated(const float* gate, const float* up) {
  const float2 g = __bfloat1622float2(__floats2bfloat162_rn(gate[0], gate[1]));
  return bits_of(__hmul2(__floats2bfloat162_rn(silu(g.x), silu(g.y)), __floats2bfloat162_rn(up[0], up[1])));
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

// The bias of a warp's 8 kChunks columns, spread over its lanes: pair p is in word p / 32 of lane p % 32.
template <int kChunks>
struct Bias {
  uint32_t pairs[(kChunks + 7) / 8];
};
template <int kChunks>
__device__ __forceinline__ Bias<kChunks> load_bias(const LinearArgs& args, int column) {
  Bias<kChunks> bias = {};
#pragma unroll
  for (int i = 0; i < (kChunks + 7) / 8; ++i) {
    const int p = static_cast<int>(threadIdx.x % 32) + 32 * i, n = column + 2 * p;
    if (!args.bias || p >= 4 * kChunks || n >= args.outs) continue;
    bias.pairs[i] = n + 1 < args.outs ? *reinterpret_cast<const uint32_t*>(args.bias + n)
                                      : *reinterpret_cast<const uint16_t*>(args.bias + n);
  }
  return bias;
}

// A warp's sums d of 16 rows: per 8 columns, what m16n8 leaves in a lane: (row, 2q), (row, 2q+1), (row+8, 2q),
// (row+8, 2q+1), where q = lane % 4.
template <int kChunks>
__device__ __forceinline__ void add_bias(const Bias<kChunks>& bias, float (&d)[4 * kChunks]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int lane = c % 8 * 4 + static_cast<int>(threadIdx.x % 4);
    const float2 b = __bfloat1622float2(as_pair(__shfl_sync(~0u, bias.pairs[c / 8], lane)));
    d[4 * c] += b.x;
    d[4 * c + 1] += b.y;
    d[4 * c + 2] += b.x;
    d[4 * c + 3] += b.y;
  }
}

// Writes a warp's 16 x 8 kChunks sums, whose lane holds row `row` and row + 8, in 16-byte pieces.
template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_sums(const LinearArgs& args, const float (&d)[4 * kChunks], int row, int column) {
  constexpr int kUnits = kChunks / 4 * 2;  // 32 columns of one row for four lanes, 16 bytes for each
  constexpr int kBatch = kUnits > 8 ? kUnits / 2 : kUnits;
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
        if (inside(u0 + i)) old[i] = load_chunk<kPieces>(place(u0 + i), width, lane_column + (u0 + i) / 2 * 32);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int u = u0 + i, h = u % 2;
      uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* sums = d + (u / 2 * 4 + j) * 4 + h * 2;
        w[j] = bits_of(__floats2bfloat162_rn(sums[0], sums[1]));
      }
      transpose_quad(w);
      if (args.out == LinearOut::kAdd) {
        const uint32_t before[4] = {old[i].x, old[i].y, old[i].z, old[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = bits_of(__hadd2(as_pair(before[j]), as_pair(w[j])));
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
        w[j] = gated(gate, up);
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
      const float2 v = __bfloat1622float2(__floats2bfloat162_rn(d[4 * c + 2 * h], d[4 * c + 2 * h + 1]));
      if constexpr (kPieces) {
        *reinterpret_cast<float2*>(y) = v;
      } else {
        y[0] = v.x;
        if (n + 1 < width) y[1] = v.y;
      }
    }
}

template <int kChunks, bool kPieces>
__device__ __forceinline__ void write_fragments(const LinearArgs& args, const float (&d)[4 * kChunks], int row,
                                                int column) {
  if (args.out == LinearOut::kGateUpSilu) {
    if constexpr (kChunks % 8 == 0) write_gated<kChunks, kPieces>(args, d, row, column);
  } else if (args.out == LinearOut::kFloat) {
    write_floats<kChunks, kPieces>(args, d, row, column);
  } else {
    write_sums<kChunks, kPieces>(args, d, row, column);
  }
}

}  // namespace saccade::cuda
