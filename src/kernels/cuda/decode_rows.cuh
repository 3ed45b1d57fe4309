// What stands between the matmuls of decode_chained and decode_batch: sums of their partial results and the epilogues
// of whole rows. Bound by latency: a few hundred KB from the L2 cache. Sums in the order of the CTAs that made them.
//
// Each begins with what does not depend on the preceding stage, then calls wait().
#pragma once

#include "kernels/cuda/decode_chain.cuh"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::chain {

__device__ __forceinline__ float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Sums of four columns in each of two places of a row. One copy of the code for all callers.
struct Sums {
  float4 at[2];
};
struct Parts {
  const float* from;
  int count;
};
static __device__ __noinline__ Sums sum_parts(Parts first, Parts second, int64_t step) {
  constexpr int kAtOnce = 12;  // loads in flight of each sum
  Sums sums = {};
  Parts of[2] = {first, second};
  const int most = max(first.count, second.count);
  for (int i = 0; i < most; i += kAtOnce) {
    float4 parts[2][kAtOnce];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j, of[s].from += step)
        parts[s][j] = i + j < of[s].count ? __ldcg(reinterpret_cast<const float4*>(of[s].from)) : float4{};
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) sums.at[s] = add(sums.at[s], parts[s][j]);
  }
  return sums;
}
// From columns n and n + stride on; of a place behind `width` zeros.
__device__ __forceinline__ Sums sum_partials(const Partials& p, int row, int n, int stride, int width) {
  const auto of = [&](int column) {
    return Parts{p.of(row, column), column < width ? p.split.count(column / kGroupRows) : 0};
  };
  return sum_parts(of(n), of(n + stride), p.step());
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

struct alignas(8) Four {
  bf16 v[4];
};

// Of a row, by `threads` threads that meet in sync(); four columns a thread in two places at a time. Shared memory:
// `row` [D], `warp_sums` [threads / 32].
template <class Wait, class Sync>
__device__ __forceinline__ void add_norm_row(const Norm& a, int b, int threads, Four* row, float* warp_sums,
                                             const Wait& wait, const Sync& sync) {
  constexpr int kSums = 2;
  const int first = static_cast<int>(threadIdx.x) * 4, stride = threads * 4;
  const auto weight_of = [&](int n) { return __ldg(reinterpret_cast<const uint2*>(a.w + n)); };
  uint2 weights[kSums];
#pragma unroll
  for (int s = 0; s < kSums; ++s) weights[s] = first + s * stride < a.width ? weight_of(first + s * stride) : uint2{};
  wait();
  bf16* h = a.h + static_cast<int64_t>(b) * a.width;
  float squares = 0;
  for (int n = first; n < a.width; n += kSums * stride) {
    Sums sums;
    if (a.partials.data != nullptr) sums = sum_partials(a.partials, b, n, stride, a.width);
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const int column = n + s * stride;
      if (column >= a.width) continue;
      Four values = *reinterpret_cast<const Four*>(h + column);
      if (a.partials.data != nullptr) {
        const float of[4] = {sums.at[s].x, sums.at[s].y, sums.at[s].z, sums.at[s].w};
        for (int i = 0; i < 4; ++i) values.v[i] = __float2bfloat16(__bfloat162float(values.v[i]) + rounded(of[i]));
        *reinterpret_cast<Four*>(h + column) = values;
      }
      row[column / 4] = values;
      for (int i = 0; i < 4; ++i) {
        const float v = __bfloat162float(values.v[i]);
        squares += v * v;
      }
    }
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  sync();
  float total = 0;
  for (int i = 0; i < threads / 32; ++i) total += warp_sums[i];
  const float scale = 1 / sqrtf(total / static_cast<float>(a.width) + a.eps);
  for (int n = first; n < a.width; n += kSums * stride)
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const int column = n + s * stride;
      if (column >= a.width) continue;
      const uint2 packed = n == first ? weights[s] : weight_of(column);
      const Four& w = reinterpret_cast<const Four&>(packed);
      Four values = row[column / 4];
      for (int i = 0; i < 4; ++i)
        values.v[i] = __float2bfloat16(rounded(__bfloat162float(values.v[i]) * scale) * __bfloat162float(w.v[i]));
      *reinterpret_cast<Four*>(a.x + tile_offset(b, column)) = values;
    }
}

// Heads of q, k and v that a warp takes at a time: eight values a lane, four pairs.
__host__ __device__ constexpr int rope_heads(int head_dim) { return 256 / head_dim; }
__host__ __device__ constexpr int rope_items(const Attention& a) {
  const int heads = a.rows * (a.heads + 2 * a.kv_heads), at_once = rope_heads(a.head_dim);
  return (heads + at_once - 1) / at_once;
}
template <class Wait>
__device__ __forceinline__ void rope_append_heads(const Attention& a, bf16* kv, const Partials& qkv, const bf16* bias,
                                                  int item, const Wait& wait) {
  const int heads = a.heads + 2 * a.kv_heads, half = a.head_dim / 2, lanes = half / 4, lane = threadIdx.x % 32;
  const int index = min(item * rope_heads(a.head_dim) + lane / lanes, a.rows * heads - 1);  // the last: more than once
  const int b = index / heads, head = index % heads, i = lane % lanes * 4;
  const bool value = head >= a.heads + a.kv_heads;
  const int kv_head = head - a.heads - (value ? a.kv_heads : 0);
  const int slot = a.slots[b];
  const float* cos_sin = a.cos_sin + static_cast<int64_t>(b) * a.head_dim + i;
  const float4 cos4 = *reinterpret_cast<const float4*>(cos_sin),
               sin4 = *reinterpret_cast<const float4*>(cos_sin + half);
  // Places of the pairs' halves; of v, whose order is plain, simply two places.
  const int places[2] = {static_cast<int>(paired_row(i, 0)), static_cast<int>(paired_row(i, 1))};
  const int n = head * a.head_dim;
  Four add[2] = {};
  if (bias != nullptr)
    for (int j = 0; j < 2; ++j) add[j] = *reinterpret_cast<const Four*>(bias + n + places[j]);
  wait();
  const Sums sums = sum_partials(qkv, b, n + places[0], places[1] - places[0], heads * a.head_dim);
  Four y[2];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float first = rounded((&sums.at[0].x)[k] + __bfloat162float(add[0].v[k])),
                second = rounded((&sums.at[1].x)[k] + __bfloat162float(add[1].v[k]));
    const float c = (&cos4.x)[k], s = (&sin4.x)[k];
    y[0].v[k] = __float2bfloat16(value ? first : rounded(first * c) + rounded(-second * s));
    y[1].v[k] = __float2bfloat16(value ? second : rounded(second * c) + rounded(first * s));
  }
  bf16* const cache = kv + ((static_cast<int64_t>(slot / kKvPageTokens) * 2 + value) * a.kv_heads + kv_head) *
                               kKvPageTokens * a.head_dim;
  for (int j = 0; j < 2; ++j) {
    bf16* to = head < a.heads ? a.q + (static_cast<int64_t>(b) * a.heads + head) * a.head_dim + places[j]
                              : cache + kv_offset(slot % kKvPageTokens, places[j]);
    *reinterpret_cast<Four*>(to) = y[j];
  }
}

// Spans of a query head of one row, by a warp.
template <int kDh, class Wait>
__device__ __forceinline__ void combine_head(const Attention& a, int item, const Wait& wait) {
  constexpr int kValues = kDh / 32;
  const int b = item / a.heads, head = item % a.heads, lane = threadIdx.x % 32;
  if (b >= a.rows) return wait();
  const int group = a.group(), pages = (a.kv_lens[b] + kKvPageTokens - 1) / kKvPageTokens;
  const int spans = (pages + span_pages(pages) - 1) / span_pages(pages);
  const int64_t first = (static_cast<int64_t>(b) * a.kv_heads + head / group) * a.max_spans * group + head % group;
  wait();
  float top = -INFINITY, total = 0, sums[kValues] = {};
  const float* from = a.sums + first * kDh + lane * kValues;
#pragma unroll 4
  for (int i = 0; i < spans; ++i) {
    const float2 stats = __ldcg(a.stats + first + i * group);
    float x[kValues];
    if constexpr (kValues == 4)
      *reinterpret_cast<float4*>(x) =
          __ldcg(reinterpret_cast<const float4*>(from + static_cast<int64_t>(i) * group * kDh));
    else
      *reinterpret_cast<float2*>(x) =
          __ldcg(reinterpret_cast<const float2*>(from + static_cast<int64_t>(i) * group * kDh));
    const float highest = fmaxf(top, stats.x), shrink = exp2f(top - highest), weight = exp2f(stats.x - highest);
    top = highest;
    total = total * shrink + weight * stats.y;
#pragma unroll
    for (int k = 0; k < kValues; ++k) sums[k] = sums[k] * shrink + weight * x[k];
  }
  uint32_t packed[kValues / 2];
  for (int k = 0; k < kValues; k += 2) packed[k / 2] = pack_bf16(sums[k] / total, sums[k + 1] / total);
  uint32_t* to = reinterpret_cast<uint32_t*>(a.y + tile_offset(b, head * kDh + lane * kValues));
  for (int k = 0; k < kValues / 2; ++k) to[k] = packed[k];
}

}  // namespace saccade::cuda::chain
