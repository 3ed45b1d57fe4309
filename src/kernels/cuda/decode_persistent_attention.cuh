// Attention of the persistent decode kernel: one query per sequence over the paged cache.
//
// An item is one kv head of a sequence and a run of its pages; how a sequence is split depends on its own length alone.
// The query heads of the group are rows of both products: scores = q K^T with mma m16n8k16, one m16n8 tile (8 tokens of
// a page) for each warp, then y = P V, 16 of the Dh columns for each warp over all 64 tokens of the page. Operands go
// straight from the cache to registers, one page ahead. After a barrier the parts are combined, by a warp for each
// query head.
#pragma once

#include "kernels/cuda/decode_persistent.cuh"

namespace saccade::cuda::persistent {

// Shared memory: how each sequence is split.
__device__ __forceinline__ void split_sequence(const Params& p, Shared& s, int b) {
  const int pages = (p.kv_lens[b] + kKvPageTokens - 1) / kKvPageTokens;
  s.kv_lens[b] = p.kv_lens[b];
  s.part_pages[b] = (pages + kMaxSplits - 1) / kMaxSplits;
  s.parts[b] = (pages + s.part_pages[b] - 1) / s.part_pages[b];
}

// Walks over the pages of this CTA's items.
struct Cursor {
  int item, b, kv_head, part, page, end, id;  // b = rows: none is left
};
__device__ __forceinline__ void load_id(const Params& p, Cursor& c) {
  if (c.b < p.rows) c.id = __ldg(p.page_table + c.b * p.max_pages + c.page);
}
__device__ __forceinline__ void seek(const Params& p, const Shared& s, int item, Cursor& c) {
  c.item = item;
  for (c.b = 0; c.b < p.rows; ++c.b) {
    const int parts = s.parts[c.b];
    if (item < parts * p.kv_heads) {
      c.kv_head = item / parts;
      c.part = item % parts;
      c.page = c.part * s.part_pages[c.b];
      c.end = min(c.page + s.part_pages[c.b], (s.kv_lens[c.b] + kKvPageTokens - 1) / kKvPageTokens);
      break;
    }
    item -= parts * p.kv_heads;
  }
  load_id(p, c);
}
__device__ __forceinline__ void step(const Params& p, const Shared& s, Cursor& c) {
  if (c.b == p.rows) return;
  if (++c.page < c.end) return load_id(p, c);
  seek(p, s, c.item + static_cast<int>(gridDim.x), c);
}

__device__ __forceinline__ void prefetch(const void* from, int64_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(static_cast<uint32_t>(bytes)) : "memory");
}

// Brings what is small to the L2 cache, and when a layer begins the cache that its items read. One thread.
__device__ __forceinline__ void prefetch_for_layers(const Params& p, Shared& s) {
  for (int i = static_cast<int>(blockIdx.x); i < p.depth; i += static_cast<int>(gridDim.x)) {
    prefetch(p.layers[i].attention_norm, p.width * sizeof(bf16));
    prefetch(p.layers[i].mlp_norm, p.width * sizeof(bf16));
    if (p.layers[i].bias) prefetch(p.layers[i].bias, (p.heads + 2 * p.kv_heads) * p.head_dim * sizeof(bf16));
  }
  const int elements = kKvPageTokens * p.head_dim;
  for (int layer = 0; layer < p.depth; ++layer) {
    while (*static_cast<const volatile int*>(&s.layer) < layer) __nanosleep(100);
    if (layer + 1 < p.depth) s.views[(layer + 1) & 1] = p.layers[layer + 1];
    __threadfence_block();
    *static_cast<volatile int*>(&s.views_ready) = layer + 1;
    Cursor c;
    for (seek(p, s, static_cast<int>(blockIdx.x), c); c.b < p.rows; step(p, s, c)) {
      const bf16* keys = s.views[layer & 1].kv + (int64_t{c.id} * 2 * p.kv_heads + c.kv_head) * elements;
      prefetch(keys, elements * sizeof(bf16));
      prefetch(keys + p.kv_heads * elements, elements * sizeof(bf16));
    }
  }
}

// A thread's part of one page: its chunks of token 8 warp + group of the keys; of the values, columns 2 group and
// 2 group + 1 of the warp's 16, for tokens 16 i + {0, 1, 8, 9} + 2 quad. And of the query heads.
struct PageOperands {
  uint4 key[2][2];
  uint32_t value[4][4];
};
__device__ __forceinline__ void load_page(const Thread& t, const bf16* kv, const Cursor& c, PageOperands& o) {
  const Params& p = t.p;
  if (c.b == p.rows) return;
  const bf16* keys = kv + (int64_t{c.id} * 2 * p.kv_heads + c.kv_head) * kKvPageTokens * p.head_dim;
  const bf16* values = keys + p.kv_heads * kKvPageTokens * p.head_dim;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (half * kBlockCols < p.head_dim) {
      const bf16* row = keys + half * kKvPageTokens * kBlockCols + (8 * t.warp + t.group) * kBlockCols;
      o.key[half][0] = load_16(row + ((2 * t.quad) ^ t.group) * 8);
      o.key[half][1] = load_16(row + ((2 * t.quad + 1) ^ t.group) * 8);
    }
  const int column = 16 * t.warp + 2 * t.group, tokens = t.s.kv_lens[c.b] - c.page * kKvPageTokens;
  if (column >= p.head_dim) return;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 16 * i + j / 2 * 8 + 2 * t.quad + j % 2;
      o.value[i][j] = token < tokens ? __ldcg(reinterpret_cast<const uint32_t*>(values + kv_offset(token, column))) : 0;
    }
}
__device__ __forceinline__ void load_queries(const Thread& t, const Cursor& c, uint4 (&q)[2][2]) {
  const Params& p = t.p;
  const int group_heads = p.heads / p.kv_heads;
  if (c.b == p.rows || t.group >= group_heads) return;
  const bf16* from = p.q + (c.b * p.heads + c.kv_head * group_heads + t.group) * p.head_dim + 16 * t.quad;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (half * kBlockCols < p.head_dim) {
      q[half][0] = load_16(from + half * kBlockCols);
      q[half][1] = load_16(from + half * kBlockCols + 8);
    }
}

// Waits for the grid; then this CTA's items from `first` on. Its page is asked for before, and again if this step
// writes to it.
__device__ __forceinline__ void attend(Thread& t, int layer, const Cursor& first) {
  const Params& p = t.p;
  const bf16* kv = t.s.views[layer & 1].kv;
  const float scale = p.scale * 1.4426950408889634f;  // powers of two
  Cursor now = first, next = first;
  PageOperands operands = {}, next_operands = {};
  uint4 q[2][2] = {}, next_q[2][2] = {};
  load_page(t, kv, now, operands);
  grid_wait(t);
  load_queries(t, now, q);
  if (now.b < p.rows && now.page == (t.s.kv_lens[now.b] - 1) / kKvPageTokens) load_page(t, kv, now, operands);
  step(p, t.s, next);

  float top = -INFINITY, total = 0, y[2][4] = {};
  for (int buffer = 0; now.b < p.rows; buffer ^= 1) {
    load_page(t, kv, next, next_operands);
    load_queries(t, next, next_q);
    Cursor after = next;
    step(p, t.s, after);

    const int tokens = t.s.kv_lens[now.b] - now.page * kKvPageTokens;
    float s[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 &a = q[half][i], &k = operands.key[half][i];
        if (half * kBlockCols < p.head_dim) {
          mma_16x8x16(s, {a.x, 0, a.y, 0}, k.x, k.y);
          mma_16x8x16(s, {a.z, 0, a.w, 0}, k.z, k.w);
        }
      }
    float* scores = t.s.scores[buffer] + t.group * kScoreStride + 2 * t.quad;
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
      const uint32_t(&v)[4] = operands.value[i];
      mma_16x8x16(y[0], {a0, 0, a2, 0}, __byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410));
      mma_16x8x16(y[1], {a0, 0, a2, 0}, __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632));
    }

    if (now.page + 1 == now.end) {
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = ((now.b * p.kv_heads + now.kv_head) * kMaxSplits + now.part) * kMaxGroup + t.group;
      if (16 * t.warp < p.head_dim)  // columns 4 quad .. 4 quad + 3 of the warp's 16
        *reinterpret_cast<float4*>(p.partial + int64_t{row} * p.head_dim + 16 * t.warp + 4 * t.quad) =
            make_float4(y[0][0], y[1][0], y[0][1], y[1][1]);
      if (t.warp == 0 && t.quad == 0) p.partial_top[row] = make_float2(top, total);
      top = -INFINITY, total = 0;
      y[0][0] = y[0][1] = y[1][0] = y[1][1] = 0;
    }
    now = next;
    next = after;
    operands = next_operands;
#pragma unroll
    for (int half = 0; half < 2; ++half) q[half][0] = next_q[half][0], q[half][1] = next_q[half][1];
  }
}

// Waits for the grid and adds the parts of each query head in their order: a warp for each, a lane for each part's
// weight and for four columns.
__device__ __forceinline__ void combine(Thread& t) {
  constexpr int kBatch = 16;
  const Params& p = t.p;
  const int group_heads = p.heads / p.kv_heads, column = 4 * t.lane;
  const bool has_columns = column < p.head_dim;
  grid_wait(t);
  for (int i = static_cast<int>(blockIdx.x + gridDim.x * t.warp); i < p.rows * p.heads; i += gridDim.x * kWarps) {
    const int b = i / p.heads, kv_head = i % p.heads / group_heads, parts = t.s.parts[b];
    const int row = (b * p.kv_heads + kv_head) * kMaxSplits * kMaxGroup + i % group_heads;
    float4 v[kBatch], y = make_float4(0, 0, 0, 0);
    const auto load_batch = [&](int part) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        v[j] = make_float4(0, 0, 0, 0);
        if (part + j < parts && has_columns)
          v[j] = __ldcg(
              reinterpret_cast<const float4*>(p.partial + int64_t{row + (part + j) * kMaxGroup} * p.head_dim + column));
      }
    };
    const float2 top_sum =
        t.lane < parts ? __ldcg(p.partial_top + row + t.lane * kMaxGroup) : make_float2(-INFINITY, 0);
    load_batch(0);
    float top = top_sum.x;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, j));
    const float weight = exp2f(top_sum.x - top);
    float sum = weight * top_sum.y;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) sum += __shfl_xor_sync(~0u, sum, j);
    for (int part = 0; part < parts; part += kBatch) {
      if (part > 0) load_batch(part);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float w = __shfl_sync(~0u, weight, part + j);
        y.x += w * v[j].x, y.y += w * v[j].y, y.z += w * v[j].z, y.w += w * v[j].w;
      }
    }
    if (has_columns)
      *reinterpret_cast<uint2*>(p.attended + i * p.head_dim + column) =
          make_uint2(pack(y.x / sum, y.y / sum), pack(y.z / sum, y.w / sum));
  }
}

}  // namespace saccade::cuda::persistent
