// What the two kernels of paged_attention share: which rows a tile holds, and the softmax of a row.
//
// The rows of a tile are (token, head of the group) with the head fastest, so all heads that share keys share a tile
// and read them once; 64 rows of 8 heads span only 8 tokens, so few keys are masked. Keys come in tiles of a page, from
// position 0 on, in rising order; all that is computed for a row depends on these keys and its query alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {

// n / d by a multiplication, for 0 <= n < 2^32 / d.
struct Divisor {
  int value = 1;
  uint32_t reciprocal = 0;

  Divisor() = default;
  explicit Divisor(int64_t d)
      : value(static_cast<int>(d)), reciprocal(static_cast<uint32_t>(((int64_t{1} << 32) + d - 1) / d)) {}
  __device__ int divide(int n) const {
    return value == 1 ? n : static_cast<int>(__umulhi(static_cast<uint32_t>(n), reciprocal));
  }
};

struct PagedAttention {
  const bf16* q;   // [T,H,Dh]
  const bf16* kv;  // [pages, 2, K, Dh/64, 64, 64]
  bf16* y;         // [T, H*Dh]
  const int* q_offsets;
  const int* kv_lens;
  const int* page_table;
  int max_pages, sequences, heads;
  Divisor kv_heads, group;  // K, H / K
  float scale;              // of scores, for a softmax of base 2
};

inline constexpr int kTileRows = 64;

// The rows of one sequence and one key head, cut into tiles.
struct TiledRows {
  int first;  // row of the step
  int past;   // tokens cached before it
  int count;  // (token, head) rows
  Divisor group;
  int sequence;
  int kv_head;

  TiledRows() = default;
  __device__ TiledRows(const PagedAttention& a, int sequence, int kv_head)
      : group(a.group), sequence(sequence), kv_head(kv_head) {
    first = a.q_offsets[sequence];
    const int tokens = a.q_offsets[sequence + 1] - first;
    past = a.kv_lens[sequence] - tokens;
    count = tokens * group.value;
  }
  __device__ int tiles() const { return (count + kTileRows - 1) / kTileRows; }
  __device__ int cached() const { return past + group.divide(count); }
  // Position in the cache of a row, which is the last key that it sees. Rows past the end stand for the last one.
  __device__ int position(int row) const { return past + group.divide(min(row, count - 1)); }
  // Key tiles that some row of a tile sees, and those that every row sees whole.
  __device__ int key_tiles(int tile) const { return position(tile * kTileRows + kTileRows - 1) / kKvPageTokens + 1; }
  __device__ int whole_key_tiles(int tile) const { return (position(tile * kTileRows) + 1) / kKvPageTokens; }
  // Index of (row's token, row's head) in [T,H].
  __device__ int64_t index(int row, int heads) const {
    row = min(row, count - 1);
    const int token = group.divide(row);
    return static_cast<int64_t>(first + token) * heads + kv_head * group.value + (row - token * group.value);
  }
};

// A thread holds two rows of a tile: `lane / 4` and 8 below of its warp's 16; of every 8 columns, columns
// 2 (lane % 4) and the next. x[n][2 * half + e] is in row `half`, column 8 n + 2 (lane % 4) + e: the layout of sums of
// mma.m16n8k16 and of wgmma.
template <int kBlocks>
__device__ __forceinline__ void mask_after(float (&s)[kBlocks][4], const int (&last)[2], int first_column) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (first_column + 8 * n + e % 2 > last[e / 2]) s[n][e] = -INFINITY;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Online softmax. Weights are relative to `reference`, which is raised to the maximum of a tile only when that is more
// than a factor of 2^kSlack higher: this is seldom, and sums and products stay far from the limits of float. Each row
// decides for itself.
struct OnlineSoftmax {
  static constexpr float kSlack = 8;
  float reference[2] = {-INFINITY, -INFINITY};  // scaled
  float sum[2] = {0, 0};                        // this thread's columns

  // Scores become weights. True if a row of the warp has raised its reference: then what the rows have summed before is
  // to be multiplied by `factor`, which for the other rows is exactly 1, so that they notice nothing.
  template <int kBlocks>
  __device__ __forceinline__ bool step(float (&s)[kBlocks][4], float scale, float (&factor)[2]) {
    float m[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m0 = s[0][2 * half], m1 = s[0][2 * half + 1];
#pragma unroll
      for (int n = 1; n < kBlocks; ++n) {
        m0 = fmaxf(m0, s[n][2 * half]);
        m1 = fmaxf(m1, s[n][2 * half + 1]);
      }
      m[half] = fmaxf(m0, m1) * scale;
    }
    const bool raised = __any_sync(~0u, m[0] > reference[0] + kSlack || m[1] > reference[1] + kSlack);
    if (raised) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = fmaxf(m[half], __shfl_xor_sync(~0u, m[half], 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        if (!(top > reference[half] + kSlack)) top = reference[half];
        factor[half] = exp2_approx(reference[half] - top);
        sum[half] *= factor[half];
        reference[half] = top;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum0 = 0, sum1 = 0;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        s[n][2 * half] = exp2_approx(fmaf(s[n][2 * half], scale, -reference[half]));
        s[n][2 * half + 1] = exp2_approx(fmaf(s[n][2 * half + 1], scale, -reference[half]));
        sum0 += s[n][2 * half];
        sum1 += s[n][2 * half + 1];
      }
      sum[half] += sum0 + sum1;
    }
    return raised;
  }
  __device__ __forceinline__ float total(int half) const {
    const float pair = sum[half] + __shfl_xor_sync(~0u, sum[half], 1);
    return pair + __shfl_xor_sync(~0u, pair, 2);
  }
};

template <int kBlocks>
__device__ __forceinline__ void multiply_rows(float (&o)[kBlocks][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] *= factor[e / 2];
}

// Weights of columns [16 k, 16 k + 16) as a fragment of the left operand.
template <int kBlocks>
__device__ __forceinline__ void pack_weights(const float (&s)[kBlocks][4], int k, uint32_t (&p)[4]) {
  p[0] = pack_bf16(s[2 * k][0], s[2 * k][1]);
  p[1] = pack_bf16(s[2 * k][2], s[2 * k][3]);
  p[2] = pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]);
  p[3] = pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3]);
}

// The four lanes of a quad hold a row of a 4 x 4 matrix each; they get a column each.
__device__ __forceinline__ void transpose(uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3) {
  const auto exchange = [](uint32_t& low, uint32_t& high, int bit) {
    const bool upper = threadIdx.x & bit;
    const uint32_t got = __shfl_xor_sync(~0u, upper ? low : high, bit);
    (upper ? low : high) = got;
  };
  exchange(w0, w1, 1);
  exchange(w2, w3, 1);
  exchange(w0, w2, 2);
  exchange(w1, w3, 2);
}

// The queries of rows `row` and `row + 8` straight from device memory, 16 bytes at a time; then, once they have come,
// arranged as fragments of the left operand.
template <int kDh>
__device__ __forceinline__ void load_queries(const PagedAttention& a, const TiledRows& rows, int row,
                                             uint32_t (&q)[kDh / 16][4]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bf16* from = a.q + rows.index(row + 8 * half, a.heads) * kDh + column;
#pragma unroll
    for (int k = 0; k < kDh / 16; k += 2) {
      const uint4 words = *reinterpret_cast<const uint4*>(from + 16 * k);
      q[k][half] = words.x;
      q[k][half + 2] = words.y;
      q[k + 1][half] = words.z;
      q[k + 1][half + 2] = words.w;
    }
  }
}
template <int kDh>
__device__ __forceinline__ void arrange_queries(uint32_t (&q)[kDh / 16][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < kDh / 16; k += 2) transpose(q[k][half], q[k][half + 2], q[k + 1][half], q[k + 1][half + 2]);
}

template <int kDh>
__device__ __forceinline__ void store_rows(const PagedAttention& a, const TiledRows& rows, int row,
                                           const OnlineSoftmax& softmax, const float (&o)[kDh / 8][4]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inverse = 1 / softmax.total(half);
    bf16* to = a.y + rows.index(row + 8 * half, a.heads) * kDh + column;
#pragma unroll
    for (int n = 0; n < kDh / 8; n += 4) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = pack_bf16(o[n + i][2 * half] * inverse, o[n + i][2 * half + 1] * inverse);
      transpose(w[0], w[1], w[2], w[3]);
      if (row + 8 * half < rows.count) *reinterpret_cast<uint4*>(to + 8 * n) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

}  // namespace saccade::cuda
