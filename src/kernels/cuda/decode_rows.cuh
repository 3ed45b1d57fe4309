// What stands between the matmuls of decode_chained and decode_batch: sums of their partial results and the epilogues
// of whole rows. Bound by latency: a few hundred KB from the L2 cache. Sums in the order of the CTAs that made them.
//
// Each begins with what does not depend on the preceding stage, then calls wait().
#pragma once

#include "kernels/cuda/decode_chain.cuh"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::chain {

__device__ __forceinline__ float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

__device__ __forceinline__ float warp_sum(float v) {
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

struct alignas(8) Four {
  bf16 v[4];
};
// Columns n to n + 3 and n + 8 to n + 11 of a row, n % 16 = 0 or 4.
struct Eight {
  Four at[2];
};
__device__ __forceinline__ Eight load_eight(const bf16* from) {
  return {{*reinterpret_cast<const Four*>(from), *reinterpret_cast<const Four*>(from + 8)}};
}
__device__ __forceinline__ void store_eight(bf16* to, const Eight& values) {
  *reinterpret_cast<Four*>(to) = values.at[0];
  *reinterpret_cast<Four*>(to + 8) = values.at[1];
}

// Sums of such columns, as Partials have them.
struct Parts {
  const float4* from;
  int count;
};
struct Sums {
  float4 at[2];

  // Of value i of Four j of an Eight.
  __device__ __forceinline__ float of(int j, int i) const { return (&at[i / 2].x)[2 * j + i % 2]; }
};
__device__ __forceinline__ Parts parts_of(const Partials& p, int row, int n) {
  return {reinterpret_cast<const float4*>(p.of(0, row, n)), p.count(n)};
}
__device__ __forceinline__ float4 load_if(bool wanted, const float4* from) {  // else undefined
  float4 v;
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];\n}"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from), "r"(static_cast<int>(wanted)));
  return v;
}
__device__ __forceinline__ Sums sum_parts(Parts of, int step) {
  constexpr int kAtOnce = 6;  // loads in flight of each sum; with more, registers are short
  Sums sums = {};
#pragma unroll 1
  for (; of.count > 0; of.count -= kAtOnce, of.from += kAtOnce * step) {
    float4 parts[kAtOnce][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) parts[i][j] = load_if(i < of.count, of.from + i * step + j);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (i < of.count)
#pragma unroll
        for (int j = 0; j < 2; ++j) sums.at[j] = add(sums.at[j], parts[i][j]);
  }
  return sums;
}

// Of a row, by `threads` threads that meet in sync(); `thread` is this one. h may be read before wait(). x goes to
// store(column, four). Shared memory: `row` [D], `warp_sums` [threads / 32].
template <class Wait, class Sync, class Store>
__device__ __forceinline__ void add_norm_row(const Norm& a, int b, int thread, int threads, Eight* row,
                                             float* warp_sums, const Wait& wait, const Sync& sync, const Store& store) {
  const int eights = a.width / 8;
  const auto column_of = [](int i) { return i / 2 * kStripRows + i % 2 * 4; };
  bf16* const h = a.h + static_cast<int64_t>(b) * a.width;
  Eight weights = {}, values = {};
  Parts parts = {};
  if (thread < eights) {
    weights = load_eight(a.w + column_of(thread));
    values = load_eight(h + column_of(thread));
    if (a.partials.data != nullptr) parts = parts_of(a.partials, b, column_of(thread));
  }
  wait();
  float squares = 0;
  for (int i = thread; i < eights; i += threads) {
    const int n = column_of(i);
    if (i != thread) values = load_eight(h + n);
    if (a.partials.data != nullptr) {
      if (i != thread) parts = parts_of(a.partials, b, n);
      const Sums sums = sum_parts(parts, a.partials.step() / 4);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        bf16& v = values.at[k / 4].v[k % 4];
        v = __float2bfloat16(__bfloat162float(v) + rounded(sums.of(k / 4, k % 4)));
      }
      store_eight(h + n, values);
    }
    row[i] = values;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float v = __bfloat162float(values.at[k / 4].v[k % 4]);
      squares += v * v;
    }
  }
  squares = warp_sum(squares);
  if (thread % 32 == 0) warp_sums[thread / 32] = squares;
  sync();
  float total = 0;
  for (int i = 0; i < threads / 32; ++i) total += warp_sums[i];
  const float scale = 1 / sqrtf(total / static_cast<float>(a.width) + a.eps);
  for (int i = thread; i < eights; i += threads) {
    const int n = column_of(i);
    if (i != thread) weights = load_eight(a.w + n);
    values = row[i];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      bf16& v = values.at[k / 4].v[k % 4];
      v = __float2bfloat16(rounded(__bfloat162float(v) * scale) * __bfloat162float(weights.at[k / 4].v[k % 4]));
    }
    for (int j = 0; j < 2; ++j) store(n + 8 * j, values.at[j]);
  }
}

// Heads of q, k and v that a warp takes at a time: eight values a lane, four pairs.
__host__ __device__ constexpr int rope_heads(int head_dim) { return 256 / head_dim; }
__host__ __device__ constexpr int rope_items(const Attention& a) {
  const int heads = a.rows * (a.heads + 2 * a.kv_heads), at_once = rope_heads(a.head_dim);
  return (heads + at_once - 1) / at_once;
}
// Four values in each half of a head, from value i of a half on, at columns `place` and place + 8: turned where the
// head is not of v. `head` of q, k and v; i % 4 = 0.
struct Turned {
  int place;
  Eight values;
};
template <class Wait>
__device__ __forceinline__ Turned turn_head(const Attention& a, const Partials& qkv, const bf16* bias, int b, int head,
                                            int i, const Wait& wait) {
  const float* cos_sin = a.cos_sin + static_cast<int64_t>(b) * a.head_dim + i;
  const float4 cos4 = *reinterpret_cast<const float4*>(cos_sin),
               sin4 = *reinterpret_cast<const float4*>(cos_sin + a.head_dim / 2);
  const bool value = head >= a.heads + a.kv_heads;
  Turned y = {static_cast<int>(paired_row(i, 0)), {}};
  const int n = head * a.head_dim + y.place;
  const Eight add = bias != nullptr ? load_eight(bias + n) : Eight{};
  const Parts parts = parts_of(qkv, b, n);
  wait();
  const Sums sums = sum_parts(parts, qkv.step() / 4);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float first = rounded(sums.of(0, k) + __bfloat162float(add.at[0].v[k])),
                second = rounded(sums.of(1, k) + __bfloat162float(add.at[1].v[k]));
    const float c = (&cos4.x)[k], s = (&sin4.x)[k];
    y.values.at[0].v[k] = __float2bfloat16(value ? first : rounded(first * c) + rounded(-second * s));
    y.values.at[1].v[k] = __float2bfloat16(value ? second : rounded(second * c) + rounded(first * s));
  }
  return y;
}
template <class Wait>
__device__ __forceinline__ void rope_append_heads(const Attention& a, bf16* kv, const Partials& qkv, const bf16* bias,
                                                  int item, const Wait& wait) {
  const int heads = a.heads + 2 * a.kv_heads, lanes = a.head_dim / 8, lane = threadIdx.x % 32;
  const int index = min(item * rope_heads(a.head_dim) + lane / lanes, a.rows * heads - 1);  // the last: more than once
  const int b = index / heads, head = index % heads, value = head >= a.heads + a.kv_heads ? 1 : 0;
  const int slot = a.slots[b], kv_head = head - a.heads - value * a.kv_heads;
  const Turned y = turn_head(a, qkv, bias, b, head, lane % lanes * 4, wait);
  bf16* const cache = kv + ((static_cast<int64_t>(slot / kKvPageTokens) * 2 + value) * a.kv_heads + kv_head) *
                               kKvPageTokens * a.head_dim;
  for (int j = 0; j < 2; ++j) {
    const int place = y.place + 8 * j;
    bf16* to = head < a.heads ? a.q + (static_cast<int64_t>(b) * a.heads + head) * a.head_dim + place
                              : cache + kv_offset(slot % kKvPageTokens, place);
    *reinterpret_cast<Four*>(to) = y.values.at[j];
  }
}

// Neighbouring columns: 4 or 2.
template <int kValues>
struct alignas(4 * kValues) Floats {
  float v[kValues];
};

// Softmax and weighted sum of spans, one after another: kValues neighbouring columns of a head.
template <int kValues>
struct Spans {
  float top = -INFINITY, total = 0, sums[kValues] = {};

  // The same bits wherever it is compiled.
  __device__ __forceinline__ void add(float2 stats, const Floats<kValues>& x) {
    const float highest = fmaxf(top, stats.x), shrink = exp2f(top - highest), weight = exp2f(stats.x - highest);
    top = highest;
    total = __fmaf_rn(total, shrink, __fmul_rn(weight, stats.y));
#pragma unroll
    for (int k = 0; k < kValues; ++k) sums[k] = __fmaf_rn(sums[k], shrink, __fmul_rn(weight, x.v[k]));
  }
  __device__ __forceinline__ void add(const SpanStats* stats, const float* from) {
    Floats<kValues> x;
    if constexpr (kValues == 4)
      *reinterpret_cast<float4*>(&x) = __ldcg(reinterpret_cast<const float4*>(from));
    else
      *reinterpret_cast<float2*>(&x) = __ldcg(reinterpret_cast<const float2*>(from));
    add(__ldcg(reinterpret_cast<const float2*>(stats)), x);
  }
  __device__ __forceinline__ void store(bf16* y) const {
    uint32_t* to = reinterpret_cast<uint32_t*>(y);
#pragma unroll
    for (int k = 0; k < kValues; k += 2) to[k / 2] = pack_bf16(sums[k] / total, sums[k + 1] / total);
  }
};

// Spans of a query head of one row, by a warp.
template <int kDh, class Wait>
__device__ __forceinline__ void combine_head(const Attention& a, int item, const Wait& wait) {
  constexpr int kValues = kDh / 32;
  const int b = item / a.heads, head = item % a.heads, lane = threadIdx.x % 32, group = a.group();
  if (b >= a.rows) return wait();
  const int spans = spans_of((a.kv_lens[b] + kKvPageTokens - 1) / kKvPageTokens);
  const int64_t first = (static_cast<int64_t>(b) * a.kv_heads + head / group) * a.max_spans * group + head % group;
  wait();
  Spans<kValues> sum;
#pragma unroll 4
  for (int64_t i = first; i < first + spans * group; i += group)
    sum.add(a.stats + i, a.sums + i * kDh + lane * kValues);
  sum.store(a.y + tile_offset(b, head * kDh + lane * kValues));
}

}  // namespace saccade::cuda::chain
