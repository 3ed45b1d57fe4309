// Attention of the batch decode kernel: one query a sequence over pages of the cache that come through the ring.
//
// A warpgroup takes every other page of a span, a warp 16 tokens of each: scores of up to 16 heads (mma m16n8k16, heads
// as rows), softmax and the weighted sum of the values are the warp's own until the span ends; then the warps' sums are
// added up. Scores, softmax and sums in float, weights in bf16 for the product. A span's length depends on the
// sequence's length alone, and so does the order of all sums.
#pragma once

#include "kernels/cuda/decode_batch.cuh"

namespace saccade::cuda::batch {

using chain::Cursor;
using chain::kStepPages;
using chain::Walk;

// Of a span's end: sums of eight heads.
template <int kDh>
struct AttentionShared {
  static constexpr int kPitch = kDh + 8;  // floats; rows eight banks apart
  float sums[kConsumerWarps][8][kPitch];
  float tops[kConsumerWarps][16], totals[kConsumerWarps][16];
};

__device__ __forceinline__ int step_pages(const Cursor& c) { return min(kStepPages, c.pages - c.page); }

__device__ __forceinline__ void sync_warpgroup(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(2 + group) : "memory");
}

// The last page of a sequence may have been read before this step's key and value were written, and what is behind them
// is not defined. A warpgroup.
template <int kDh>
__device__ __forceinline__ void mend_last_page(const chain::Attention& a, const bf16* kv, const Cursor& c, char* keys,
                                               char* values) {
  const int last = (c.length - 1) % kKvPageTokens, slot = a.slots[c.b];
  const bf16* from =
      kv + (static_cast<int64_t>(slot / kKvPageTokens) * 2 * a.kv_heads + c.kv_head) * kKvPageTokens * kDh;
  for (int i = static_cast<int>(threadIdx.x) % 128; i < kKvPageTokens * kDh / 8; i += 128) {
    const int token = i / 8 % kKvPageTokens;
    if (token > last) *reinterpret_cast<uint4*>(values + 16 * i) = uint4{};
    if (token != last) continue;
    *reinterpret_cast<uint4*>(keys + 16 * i) = __ldcg(reinterpret_cast<const uint4*>(from + 8 * i));
    *reinterpret_cast<uint4*>(values + 16 * i) =
        __ldcg(reinterpret_cast<const uint4*>(from + a.kv_heads * kKvPageTokens * kDh + 8 * i));
  }
  fence_proxy_async();
}

// Softmax of 16 tokens of each page so far and the weighted sum of their values, of up to 8 kHalves heads. Lane: heads
// lane / 4 and, of the second half, 8 more.
template <int kDh, int kHalves>
struct Weighted {
  float sums[kDh / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};  // total: of this lane's tokens

  // `keys` and `values`: of the page; `tokens` behind `first` count.
  __device__ __forceinline__ void add(const uint32_t (&q)[kDh / 16][4], uint32_t keys, int first, int tokens,
                                      float scale, uint32_t (&weights)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float s[2][4] = {};
#pragma unroll
    for (int k = 0; k < kDh / 16; ++k) {
      uint32_t k4[4];
      const int token = first + lane / 16 * 8 + lane % 8, column = 16 * k + lane / 8 % 2 * 8;
      ldmatrix_x4(k4, keys + 2 * static_cast<int>(kv_offset(token, column)));
      mma_16x8x16(s[0], q[k], k4[0], k4[1]);
      mma_16x8x16(s[1], q[k], k4[2], k4[3]);
    }
    float shrink[2] = {1, 1};  // of what was added before
    weights[1] = weights[3] = 0;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float highest = top[half];
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[j][2 * half + i];
          x = 8 * j + lane % 4 * 2 + i < tokens ? x * scale : -INFINITY;
          highest = fmaxf(highest, x);
        }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float base = highest == -INFINITY ? 0 : highest;  // where no token counts yet
      shrink[half] = exp2f(top[half] - base);
      top[half] = highest;
      total[half] *= shrink[half];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float x = exp2f(s[j][2 * half] - base), y = exp2f(s[j][2 * half + 1] - base);
        total[half] += x + y;
        weights[2 * j + half] = pack_bf16(x, y);
      }
    }
    if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1))
#pragma unroll
      for (auto& sum : sums)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] *= shrink[i / 2];
  }
  __device__ __forceinline__ void add_values(uint32_t values, int first, const uint32_t (&weights)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < kDh / 16; ++n) {
      uint32_t v4[4];
      ldmatrix_x4_trans(v4, values + 2 * static_cast<int>(kv_offset(first + lane % 16, 16 * n + lane / 16 * 8)));
      mma_16x8x16(sums[2 * n], weights, v4[0], v4[1]);
      mma_16x8x16(sums[2 * n + 1], weights, v4[2], v4[3]);
    }
  }
};

// Adds up what the warps have of a span.
template <int kDh, int kHalves>
__device__ __forceinline__ void store_span(const chain::Attention& a, AttentionShared<kDh>& shared,
                                           Weighted<kDh, kHalves>& mine, const Cursor& c) {
  constexpr int kValues = kDh / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, group = a.group();
  const int64_t first_head = ((static_cast<int64_t>(c.b) * a.kv_heads + c.kv_head) * a.max_spans + c.index) * group;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float& total = mine.total[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (lane % 4 == 0) {
      shared.tops[warp][lane / 4 + 8 * half] = mine.top[half];
      shared.totals[warp][lane / 4 + 8 * half] = total;
    }
  }
  sync_consumers();
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const auto top_of = [&](int head) {
      float top = shared.tops[0][head];
#pragma unroll
      for (int w = 1; w < kConsumerWarps; ++w) top = fmaxf(top, shared.tops[w][head]);
      return top;
    };
    const float scale = exp2f(mine.top[half] - top_of(lane / 4 + 8 * half));
#pragma unroll
    for (int n = 0; n < kDh / 8; ++n)
      *reinterpret_cast<float2*>(&shared.sums[warp][lane / 4][8 * n + lane % 4 * 2]) =
          make_float2(mine.sums[n][2 * half] * scale, mine.sums[n][2 * half + 1] * scale);
    sync_consumers();
    const int head = warp + 8 * half;
    if (head < group) {
      float sums[kValues] = {};
#pragma unroll
      for (int w = 0; w < kConsumerWarps; ++w)
#pragma unroll
        for (int i = 0; i < kValues; ++i) sums[i] += shared.sums[w][warp][lane + 32 * i];
#pragma unroll
      for (int i = 0; i < kValues; ++i) a.sums[(first_head + head) * kDh + lane + 32 * i] = sums[i];
      if (lane == 0) {
        const float top = top_of(head);
        float total = 0;
#pragma unroll
        for (int w = 0; w < kConsumerWarps; ++w) total += exp2f(shared.tops[w][head] - top) * shared.totals[w][head];
        a.stats[first_head + head] = make_float2(top, total);
      }
    }
    sync_consumers();
  }
  mine = {};
}

template <int kDh, int kHalves>
__device__ __forceinline__ void attend(const chain::Attention& a, const bf16* kv, const Memory& memory,
                                       const Walk& walk, Cursor c, Turn& turn) {
  AttentionShared<kDh>& shared = *reinterpret_cast<AttentionShared<kDh>*>(memory.x_data);
  static_assert(sizeof(shared) <= kXRing);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warpgroup = warp / 4, first = warp % 4 * 16, group = a.group();
  const float scale = a.scale * 1.44269504088896341f;
  const auto slot_of = [&](int i) {
    Turn t = turn;
    t.advance(i, kSlots);
    return t;
  };
  const auto wait = [&](const Turn& t) {
    mbarrier_wait(memory.full(t.slot), t.parity);
    return memory.ring + t.slot * kSlotBytes;
  };
  const auto release = [&](const Turn& t) {
    __syncwarp();
    if (lane == 0) free_slot(memory, t.slot);
  };
  uint32_t q[kDh / 16][4] = {};
  Weighted<kDh, kHalves> mine;
  bool new_query = true;
  for (; !walk.done(c); walk.advance(c)) {
    const int pages = step_pages(c), page = c.page + warpgroup;
    if (new_query || c.page == 0) {
      const bf16* from = a.q + (static_cast<int64_t>(c.b) * a.heads + c.kv_head * group) * kDh + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int k = 0; k < kDh / 8; ++k)
          if (lane / 4 + 8 * half < group)
            q[k / 2][k % 2 * 2 + half] =
                __ldcg(reinterpret_cast<const unsigned*>(from + (lane / 4 + 8 * half) * kDh + 8 * k));
      new_query = false;
    }
    if (page < c.pages) {
      const Turn key_turn = slot_of(warpgroup), value_turn = slot_of(pages + warpgroup);
      const uint32_t keys = wait(key_turn);
      if (page == c.pages - 1) {
        wait(value_turn);
        mend_last_page<kDh>(a, kv, c, memory.ring_data + key_turn.slot * kSlotBytes,
                            memory.ring_data + value_turn.slot * kSlotBytes);
        sync_warpgroup(warpgroup);
      }
      uint32_t weights[4];
      mine.add(q, keys, first, c.length - page * kKvPageTokens - first, scale, weights);
      release(key_turn);
      mine.add_values(wait(value_turn), first, weights);
      release(value_turn);
    }
    turn.advance(2 * pages, kSlots);
    if (walk.ends_span(c)) store_span(a, shared, mine, c);
  }
}

}  // namespace saccade::cuda::batch
