// Attention of the persistent decode kernel: one query per sequence over the paged cache.
//
// An item is one kv head of a sequence and a run of its pages; how a sequence is split depends on its own length alone.
// The query heads of the group are rows of both products: scores = q K^T with mma m16n8k16, one m16n8 tile (8 tokens of a
// page) for each warp, then y = P V, 16 of the Dh columns for each warp over all 64 tokens of the page. Operands go
// straight from the cache to registers. The CTA that ends the last item of (sequence, kv head) combines its parts.
#pragma once

#include "kernels/cuda/decode_persistent.cuh"

namespace saccade::cuda::persistent {

struct Split {
  int pages, pages_each, count;
};
__device__ __forceinline__ Split split_of(int kv_len) {
  const int pages = (kv_len + kKvPageTokens - 1) / kKvPageTokens;
  const int each = (pages + kMaxSplits - 1) / kMaxSplits;
  return {pages, each, (pages + each - 1) / each};
}

// A thread's part of one page: its chunks of token 8 warp + group of the keys; of the values, columns 2 group and
// 2 group + 1 of the warp's 16, for tokens 16 i + {0, 1, 8, 9} + 2 quad.
struct PageOperands {
  uint4 key[2][2];
  uint32_t value[4][4];
};
__device__ __forceinline__ void load_page(const Thread& t, const bf16* kv, int b, int kv_head, int page, int tokens,
                                          PageOperands& o) {
  const Params& p = t.p;
  const int64_t id = __ldg(p.page_table + b * p.max_pages + page);
  const bf16* keys = kv + (id * 2 * p.kv_heads + kv_head) * kKvPageTokens * p.head_dim;
  const bf16* values = keys + p.kv_heads * kKvPageTokens * p.head_dim;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (half * kBlockCols < p.head_dim) {
      const bf16* row = keys + half * kKvPageTokens * kBlockCols + (8 * t.warp + t.group) * kBlockCols;
      o.key[half][0] = load_16(row + ((2 * t.quad) ^ t.group) * 8);
      o.key[half][1] = load_16(row + ((2 * t.quad + 1) ^ t.group) * 8);
    }
  const int column = 16 * t.warp + 2 * t.group;
  if (column >= p.head_dim) return;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 16 * i + j / 2 * 8 + 2 * t.quad + j % 2;
      o.value[i][j] =
          token < tokens ? __ldcg(reinterpret_cast<const uint32_t*>(values + kv_offset(token, column))) : 0;
    }
}

// Adds the parts of one (sequence, kv head) in their order. A warp for each query head, a lane for each part's weight.
__device__ __forceinline__ void combine(const Thread& t, int b, int kv_head, int parts) {
  constexpr int kBatch = 8;
  const Params& p = t.p;
  const int group_heads = p.heads / p.kv_heads, first = (b * p.kv_heads + kv_head) * kMaxSplits;
  if (t.warp >= group_heads) return;
  const float2 top_sum =
      t.lane < parts ? __ldcg(p.partial_top + (first + t.lane) * kMaxGroup + t.warp) : make_float2(-INFINITY, 0);
  float top = top_sum.x;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
  const float weight = exp2f(top_sum.x - top);
  float sum = weight * top_sum.y;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);

  const int column = 4 * t.lane;
  const bool has_columns = column < p.head_dim;
  float4 y = make_float4(0, 0, 0, 0);
  for (int part = 0; part < parts; part += kBatch) {
    float4 v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      v[i] = make_float4(0, 0, 0, 0);
      if (part + i < parts && has_columns)
        v[i] = __ldcg(reinterpret_cast<const float4*>(
            p.partial + (int64_t{first + part + i} * kMaxGroup + t.warp) * p.head_dim + column));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float w = __shfl_sync(~0u, weight, (part + i) % 32);
      y.x += w * v[i].x, y.y += w * v[i].y, y.z += w * v[i].z, y.w += w * v[i].w;
    }
  }
  if (!has_columns) return;
  const uint2 packed = make_uint2(pack(y.x / sum, y.y / sum), pack(y.z / sum, y.w / sum));
  bf16* to = p.attended + (b * p.heads + kv_head * group_heads + t.warp) * p.head_dim + column;
  *reinterpret_cast<uint2*>(to) = packed;
}

__device__ __forceinline__ void attend_item(Thread& t, const bf16* kv, int b, int kv_head, int part) {
  const Params& p = t.p;
  const int kv_len = t.s.kv_lens[b], group_heads = p.heads / p.kv_heads;
  const Split split = split_of(kv_len);
  const int first = part * split.pages_each, last = min(first + split.pages_each, split.pages);
  const float scale = p.scale * 1.4426950408889634f;  // powers of two

  uint4 q[2][2] = {};
  if (t.group < group_heads) {
    const bf16* from = p.q + (b * p.heads + kv_head * group_heads + t.group) * p.head_dim + 16 * t.quad;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (half * kBlockCols < p.head_dim) {
        q[half][0] = load_16(from + half * kBlockCols);
        q[half][1] = load_16(from + half * kBlockCols + 8);
      }
  }
  PageOperands next = {};
  load_page(t, kv, b, kv_head, first, kv_len - first * kKvPageTokens, next);
  float top = -INFINITY, total = 0, y[2][4] = {};
  for (int page = first; page < last; ++page) {
    const PageOperands now = next;
    const int tokens = kv_len - page * kKvPageTokens;
    if (page + 1 < last) load_page(t, kv, b, kv_head, page + 1, tokens - kKvPageTokens, next);

    float s[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 &a = q[half][i], &k = now.key[half][i];
        if (half * kBlockCols < p.head_dim) {
          mma_16x8x16(s, {a.x, 0, a.y, 0}, k.x, k.y);
          mma_16x8x16(s, {a.z, 0, a.w, 0}, k.z, k.w);
        }
      }
    float* scores = t.s.scores[page & 1] + t.group * kScoreStride + 2 * t.quad;
    const int token = 8 * t.warp + 2 * t.quad;
    *reinterpret_cast<float2*>(scores + 8 * t.warp) =
        make_float2(token < tokens ? s[0] * scale : -INFINITY, token + 1 < tokens ? s[1] * scale : -INFINITY);
    sync_warps();

    float2 e[4][2];
    float page_top = top;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        e[i][j] = *reinterpret_cast<const float2*>(scores + 16 * i + 8 * j);
        page_top = fmaxf(page_top, fmaxf(e[i][j].x, e[i][j].y));
      }
    page_top = fmaxf(page_top, __shfl_xor_sync(~0u, page_top, 1));
    page_top = fmaxf(page_top, __shfl_xor_sync(~0u, page_top, 2));
    const float shrink = exp2f(top - page_top);
    top = page_top;
    total *= shrink;
    y[0][0] *= shrink, y[0][1] *= shrink, y[1][0] *= shrink, y[1][1] *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        e[i][j] = make_float2(exp2f(e[i][j].x - top), exp2f(e[i][j].y - top));
        total += e[i][j].x + e[i][j].y;
      }
      const uint32_t a0 = pack(e[i][0].x, e[i][0].y), a2 = pack(e[i][1].x, e[i][1].y);
      const uint32_t(&v)[4] = now.value[i];
      mma_16x8x16(y[0], {a0, 0, a2, 0}, __byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410));
      mma_16x8x16(y[1], {a0, 0, a2, 0}, __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632));
    }
  }
  total += __shfl_xor_sync(~0u, total, 1);
  total += __shfl_xor_sync(~0u, total, 2);

  const int sequence = b * p.kv_heads + kv_head, row = (sequence * kMaxSplits + part) * kMaxGroup + t.group;
  if (16 * t.warp < p.head_dim)  // columns 4 quad .. 4 quad + 3 of the warp's 16
    *reinterpret_cast<float4*>(p.partial + int64_t{row} * p.head_dim + 16 * t.warp + 4 * t.quad) =
        make_float4(y[0][0], y[1][0], y[0][1], y[1][1]);
  if (t.warp == 0 && t.quad == 0) p.partial_top[row] = make_float2(top, total);
  sync_warps();
  if (t.warp == 0 && t.lane == 0) {
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(t.s.done)
                 : "l"(p.splits_done + sequence)
                 : "memory");
    if (t.s.done + 1 == static_cast<unsigned>(split.count)) p.splits_done[sequence] = 0;
  }
  sync_warps();
  if (t.s.done + 1 == static_cast<unsigned>(split.count)) combine(t, b, kv_head, split.count);
}

// Waits for the grid; then this CTA's items.
__device__ __forceinline__ void attention(Thread& t, int layer) {
  const Params& p = t.p;
  grid_wait(t);
  int item = static_cast<int>(blockIdx.x);
  for (int b = 0; b < p.rows; ++b) {
    const int parts = split_of(t.s.kv_lens[b]).count, items = parts * p.kv_heads;
    for (; item < items; item += static_cast<int>(gridDim.x))
      attend_item(t, p.layers[layer].kv, b, item / parts, item % parts);
    item -= items;
  }
}

}  // namespace saccade::cuda::persistent
