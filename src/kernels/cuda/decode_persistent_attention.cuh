// Attention of the persistent decode kernel: one query per sequence over the paged cache.
//
// An item is one kv head of a sequence and a run of its pages; how a sequence is split depends on its own length alone.
// Pages come through the ring, keys and then values, and the newest key and value are put into them. The query heads of
// the group are rows of both products: scores = q K^T with mma m16n8k16, one m16n8 tile (8 tokens of a page) for each
// warp, then y = P V, 16 of the Dh columns for each warp over all 64 tokens of the page. The parts of a query head are
// combined by one CTA.
#pragma once

#include "kernels/cuda/decode_persistent_exchange.cuh"

namespace saccade::cuda::persistent {

// To shared memory: how each sequence is split, this CTA's items, and the query heads that it combines. One warp.
__device__ __forceinline__ void split_sequences(const Params& p, Shared& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < p.rows) {
    const int tokens = p.kv_lens[lane], pages = (tokens + kKvPageTokens - 1) / kKvPageTokens;
    s.kv_lens[lane] = tokens;
    s.part_pages[lane] = (pages + kMaxSplits - 1) / kMaxSplits;
    s.parts[lane] = (pages + s.part_pages[lane] - 1) / s.part_pages[lane];
  }
  __syncwarp();
  int all = 0;
  for (int b = 0; b < p.rows; ++b) all += s.parts[b] * p.kv_heads;
  // Those of a CTA follow each other: most share their queries.
  const int each = (all + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  int number = static_cast<int>(blockIdx.x) * each + lane, b = lane < each ? 0 : p.rows;  // among those of all CTAs
  while (b < p.rows && number >= s.parts[b] * p.kv_heads) number -= s.parts[b++] * p.kv_heads;
  if (b < p.rows) {
    Item item = {b, number / s.parts[b], number % s.parts[b], 0, 0};
    item.page = item.part * s.part_pages[b];
    item.end = min(item.page + s.part_pages[b], (s.kv_lens[b] + kKvPageTokens - 1) / kKvPageTokens);
    s.item[lane] = item;
  }
  const int items = __popc(__ballot_sync(~0u, b < p.rows));
  if (lane == 0) s.items = items;
  static_assert(kMaxItems == 32);

  const int head = first_combined() + lane * static_cast<int>(gridDim.x);
  if (head < p.rows * p.heads) {
    const int kv_head = head / p.group_heads, of_row = kv_head / p.kv_heads;  // kv_head: of all rows
    s.head[lane] = {head, kv_head * kMaxSplits * kMaxGroup + head % p.group_heads, s.parts[of_row]};
  }
  const int heads = __popc(__ballot_sync(~0u, head < p.rows * p.heads));
  if (lane == 0) s.heads = heads;
}

// Walks over the pages of this CTA's items.
struct Cursor : Item {
  int number = 0;

  Cursor() = default;
  __device__ __forceinline__ explicit Cursor(const Shared& s) { load(s); }
  __device__ __forceinline__ bool done(const Shared& s) const { return number == s.items; }
  __device__ __forceinline__ void step(const Shared& s) {
    if (++page < end) return;
    ++number;
    load(s);
  }

 private:
  __device__ __forceinline__ void load(const Shared& s) {
    if (!done(s)) static_cast<Item&>(*this) = s.item[number];
  }
};

__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void prefetch(const void* from, int64_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(static_cast<uint32_t>(bytes)) : "memory");
}

// Brings what is small to the L2 cache. One thread.
__device__ __forceinline__ void prefetch_for_layers(const Params& p) {
  for (int i = static_cast<int>(blockIdx.x); i < p.depth; i += static_cast<int>(gridDim.x)) {
    prefetch(p.layers[i].attention_norm, p.width * sizeof(bf16));
    prefetch(p.layers[i].mlp_norm, p.width * sizeof(bf16));
    if (p.layers[i].bias) prefetch(p.layers[i].bias, p.qkv_rows * sizeof(bf16));
  }
}

// Element (token, place) of a page of keys or values in the ring: the chunk of 8 that it is in.
__device__ __forceinline__ uint4* kv_chunk(uint8_t* page, int token, int chunk) {
  return reinterpret_cast<uint4*>(page + chunk / 8 * (kKvPageTokens * kBlockCols * 2) + token * 128 +
                                  ((chunk % 8) ^ (token & 7)) * 16);
}
__device__ __forceinline__ uint4 wait_16(const bf16* from) {
  uint4 v;
  do v = load_16(from);
  while (missing(v));
  return v;
}

// A thread's part of the queries of an item, once it is there.
struct Queries {
  uint4 q[2][2];

  __device__ __forceinline__ bool missing_any(const Thread& t, int group_heads) const {
    if (t.group >= group_heads) return false;
    bool any = missing(q[0][0]) || missing(q[0][1]);
    if (t.p.head_dim > kBlockCols) any = any || missing(q[1][0]) || missing(q[1][1]);
    return any;
  }
  __device__ __forceinline__ void load(const Thread& t, const Cursor& c, int group_heads) {
    const Params& p = t.p;
    if (c.done(t.s) || t.group >= group_heads) return;
    const bf16* from = of_turn(p.qkv, t.turn, p.qkv_rows) + c.b * p.qkv_rows +
                       (c.kv_head * group_heads + t.group) * p.head_dim + 16 * t.quad;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (half * kBlockCols < p.head_dim) {
        q[half][0] = load_16(from + half * kBlockCols);
        q[half][1] = load_16(from + half * kBlockCols + 8);
      }
  }
};

// This CTA's items.
__device__ __forceinline__ void attend(Thread& t) {
  const Params& p = t.p;
  Cursor next(t.s);
  if (next.done(t.s)) return;
  const int group_heads = p.group_heads;
  const float scale = p.scale * 1.4426950408889634f;  // powers of two
  Queries queries = {};
  queries.load(t, next, group_heads);
  float top = -INFINITY, total = 0, y[2][4] = {};
  int buffer = 0;
  for (Cursor now = next; !now.done(t.s); now = next, buffer ^= 1) {
    const bf16* qkv = of_turn(p.qkv, t.turn, p.qkv_rows) + now.b * p.qkv_rows;
    const bf16* newest_kv = qkv + (p.heads + now.kv_head) * p.head_dim;  // value: kv_heads heads behind
    const int newest = t.s.kv_lens[now.b] - 1 - now.page * kKvPageTokens;
    while (queries.missing_any(t, group_heads)) queries.load(t, now, group_heads);
    auto* keys = const_cast<uint8_t*>(t.wait_page());
    const bool has_newest_key = newest / 8 == t.warp && newest < kKvPageTokens;
    if (has_newest_key && 8 * t.lane < p.head_dim) {
      *kv_chunk(keys, newest, t.lane) = wait_16(newest_kv + 8 * t.lane);
      fence_proxy_async_shared();  // before the stream writes there
    }
    __syncwarp();
    float s[2][4] = {};  // two sums, so that products need not wait for each other
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (half * kBlockCols < p.head_dim)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 &a = queries.q[half][i], k = *kv_chunk(keys, 8 * t.warp + t.group, half * 8 + 2 * t.quad + i);
          mma_16x8x16(s[0], {a.x, 0, a.y, 0}, k.x, k.y);
          mma_16x8x16(s[1], {a.z, 0, a.w, 0}, k.z, k.w);
        }
    t.free_page(t.next_page());
    next.step(t.s);
    if (next.b != now.b || next.kv_head != now.kv_head) queries.load(t, next, group_heads);
    float* scores = t.s.scores[buffer] + t.group * kScoreStride + 2 * t.quad;
    const int token = 8 * t.warp + 2 * t.quad;
    *reinterpret_cast<float2*>(scores + 8 * t.warp) =
        make_float2(token <= newest ? (s[0][0] + s[1][0]) * scale : -INFINITY,
                    token + 1 <= newest ? (s[0][1] + s[1][1]) * scale : -INFINITY);

    auto* values = const_cast<uint8_t*>(t.wait_page());
    const bool has_columns = 16 * t.warp < p.head_dim;
    if (has_columns && newest < kKvPageTokens) {  // this warp's columns: the newest value, and zeros for what follows
      for (int i = t.lane; i < 2 * (kKvPageTokens - newest); i += 32)
        *kv_chunk(values, newest + i / 2, 2 * t.warp + i % 2) =
            i < 2 ? wait_16(newest_kv + p.kv_heads * p.head_dim + (2 * t.warp + i) * 8) : make_uint4(0, 0, 0, 0);
      fence_proxy_async_shared();
    }
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
    const float shrink = power_of_2(top - page_top);
    top = page_top;
    total *= shrink;
    y[0][0] *= shrink, y[0][1] *= shrink, y[1][0] *= shrink, y[1][1] *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        e[i][j] = make_float2(power_of_2(e[i][j].x - top), power_of_2(e[i][j].y - top));
        total += e[i][j].x + e[i][j].y;
      }
      if (!has_columns) continue;
      const uint32_t a0 = pack_bf16(e[i][0].x, e[i][0].y), a2 = pack_bf16(e[i][1].x, e[i][1].y);
      uint32_t v[4];  // tokens 16 i + 0..7 and 8..15 of columns 0..7, then of 8..15
      ldmatrix_x4_trans(v, shared_address(kv_chunk(values, 16 * i + t.lane % 16, 2 * t.warp + t.lane / 16)));
      mma_16x8x16(y[0], {a0, 0, a2, 0}, v[0], v[1]);
      mma_16x8x16(y[1], {a0, 0, a2, 0}, v[2], v[3]);
    }
    t.free_page(t.next_page());

    if (now.page + 1 == now.end) {
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = ((now.b * p.kv_heads + now.kv_head) * kMaxSplits + now.part) * kMaxGroup + t.group;
      if (t.group < group_heads) {
        float* to = p.partial + int64_t{row} * p.head_dim + 16 * t.warp + 2 * t.quad;
        if (has_columns) publish(to, y[0][0], y[0][1]), publish(to + 8, y[1][0], y[1][1]);
        if (t.warp == 0 && t.quad == 0) publish(reinterpret_cast<float*>(p.partial_top + row), top, total);
      }
      top = -INFINITY, total = 0;
      y[0][0] = y[0][1] = y[1][0] = y[1][1] = 0;
    }
  }
}

// Adds the parts of this CTA's query heads, a warp those of every eighth number, then the warps' sums.
__device__ __forceinline__ void combine(Thread& t) {
  constexpr int kParts = kMaxSplits / kWarps;
  const Params& p = t.p;
  const int column = 4 * t.lane;
  for (int i = 0; i < t.s.heads; ++i) {
    const auto [number, row, parts] = t.s.head[i];
    const float2* top_at = p.partial_top + row + t.lane * kMaxGroup;
    float2 top_sum = make_float2(-INFINITY, 0);
    float4 v[kParts] = {};
    bool again;
    do {
      again = false;
      if (t.lane < parts && (top_sum.y == 0 || missing(top_sum))) {
        top_sum = load_8(top_at);
        again = true;
      }
#pragma unroll
      for (int j = 0; j < kParts; ++j)
        if (t.warp + j * kWarps < parts && column < p.head_dim && missing(v[j])) {
          const uint4 bits =
              load_16(p.partial + int64_t{row + (t.warp + j * kWarps) * kMaxGroup} * p.head_dim + column);
          v[j] = reinterpret_cast<const float4&>(bits);
          again = true;
        }
    } while (__any_sync(~0u, again));
    float top = top_sum.x;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, j));
    const float weight = power_of_2(top_sum.x - top);
    float sum = weight * top_sum.y;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) sum += __shfl_xor_sync(~0u, sum, j);
    float4 y = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const float w = __shfl_sync(~0u, weight, t.warp + j * kWarps);
      y.x += w * v[j].x, y.y += w * v[j].y, y.z += w * v[j].z, y.w += w * v[j].w;
    }
    sync_warps();  // others may still need what is there
    t.s.combined[t.warp][t.lane] = y;
    sync_warps();
    if (2 * static_cast<int>(threadIdx.x) < p.head_dim) {
      float2 all = make_float2(0, 0);
#pragma unroll
      for (int j = 0; j < kWarps; ++j) {
        const float2 part = reinterpret_cast<const float2*>(t.s.combined[j])[threadIdx.x];
        all.x += part.x, all.y += part.y;
      }
      publish(of_turn(p.attended, t.turn, p.q_width) + number * p.head_dim + 2 * threadIdx.x,
              pack_bf16(all.x / sum, all.y / sum));
    }
  }
  __syncwarp();
  if (t.lane == 0) mbarrier_arrive(shared_address(&t.s.combined_parts));
}

}  // namespace saccade::cuda::persistent
