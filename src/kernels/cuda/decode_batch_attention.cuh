// Attention of the batch decode kernel: bias, rope and append, and queries over pages of the cache that come through
// the ring.
//
// A warpgroup takes every other page of a span, a warp 16 tokens of each: scores of up to 16 heads (mma m16n8k16,
// tokens as rows), softmax and the weighted sum of the values are the warp's own until the span ends; then the warps'
// sums are added up. Scores, softmax and sums in float, weights in bf16 for the product. A span's length depends on the
// sequence's length alone, and so does the order of all sums: spans are added to the first one in their order, by the
// CTA that has it. What other CTAs have of the sequence they did before, since a CTA begins with what others began.
#pragma once

#include "kernels/cuda/decode_batch.cuh"

namespace saccade::cuda::batch {

// See kv_offset.
__device__ __forceinline__ uint32_t kv_bytes(unsigned token, unsigned place) {
  return (place / kBlockCols * (kKvPageTokens * kBlockCols) + swizzled(token, place % kBlockCols)) * sizeof(bf16);
}
// Of 8 columns of 64 in a swizzled row to those 16 i further.
__device__ __forceinline__ uint32_t columns_on(uint32_t address, int i) {
  return (address ^ i % 4 * 32) + i / 4 * (kKvPageTokens * kBlockCols * sizeof(bf16));
}

template <int kDh>
struct AttentionShared {
  static constexpr int kPitch = kDh + 4;       // floats: what a warp writes at a time is in different banks
  static constexpr int kQueryPitch = kDh + 8;  // rows four banks apart
  float sums[kConsumerWarps][8][kPitch];       // of a span's end: of eight heads
  float2 stats[kConsumerWarps][16];            // top, total
  alignas(16) bf16 q[16][kQueryPitch];
  alignas(16) bf16 newest[2][kDh];  // key and value
  struct alignas(128) Stored {      // by a warp: a head of y as two pieces of tiles, or of a span
    union {
      bf16 y[kDh];
      float sums[kDh];
    };
    chain::SpanStats stats;
  } stored[kConsumerWarps];
};

__device__ __forceinline__ void transpose(uint32_t& pairs) {  // of 8 x 8
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pairs));
}

// Queries, newest key and newest value of a sequence and key head. All consumers wait() for the sums of qkv.
template <int kDh, class Wait>
__device__ __forceinline__ void prepare(const Thread& t, const Params& p, const LayerView& view, const Memory& memory,
                                        AttentionShared<kDh>& shared, const Cursor& c, const Wait& wait) {
  constexpr int kLanes = kDh / 8;  // of a head
  const chain::Attention& a = p.attention;
  const int group = a.group();
  const chain::Partials qkv = partials_of(p, memory, kQkv);
  for (int first = 0; first < group + 2; first += kConsumers / kLanes) {
    const int i = min(first + t.index / kLanes, group + 1);  // the last: more than once
    const int head = i < group ? c.kv_head * group + i : a.heads + (i - group) * a.kv_heads + c.kv_head;
    const chain::Turned y = chain::turn_head(a, qkv, view.bias, c.b, head, t.index % kLanes * 4, wait);
    chain::store_eight((i < group ? shared.q[i] : shared.newest[i - group]) + y.place, y.values);
  }
}

// The last page of a sequence may have been read before this step's key and value were written, and what is behind them
// is not defined. The warp that has 16 tokens from `first` on; `last` is the page's last.
template <int kDh>
__device__ __forceinline__ void mend(const Thread& t, const AttentionShared<kDh>& shared, int first, int last,
                                     char* keys, char* values) {
  constexpr int kChunks = kDh / 8;
  for (int i = t.lane; i < 16 * kChunks; i += 32) {
    const int token = first + i / kChunks, column = i % kChunks * 8;
    if (token < last) continue;
    const uint32_t at = kv_bytes(token, column);
    const bool newest = token == last;
    *reinterpret_cast<uint4*>(values + at) =
        newest ? *reinterpret_cast<const uint4*>(&shared.newest[1][column]) : uint4{};
    if (newest) *reinterpret_cast<uint4*>(keys + at) = *reinterpret_cast<const uint4*>(&shared.newest[0][column]);
  }
  fence_proxy_async_shared();  // before the ring's next copies
  __syncwarp();
}
template <int kDh>
__device__ __forceinline__ void append(const Thread& t, const chain::Attention& a, bf16* kv,
                                       const AttentionShared<kDh>& shared, const Cursor& c) {
  constexpr int kChunks = kDh / 8;
  const int value = t.lane / kChunks, column = t.lane % kChunks * 8;
  if (value > 1) return;
  const int slot = a.slots[c.b];
  bf16* page =
      kv + ((static_cast<int64_t>(slot / kKvPageTokens) * 2 + value) * a.kv_heads + c.kv_head) * (kKvPageTokens * kDh);
  *reinterpret_cast<uint4*>(page + kv_bytes(slot % kKvPageTokens, column) / sizeof(bf16)) =
      *reinterpret_cast<const uint4*>(&shared.newest[value][column]);
}

// Softmax of 16 tokens of each page so far and the weighted sum of their values, of up to 8 kHalves heads. Lane: heads
// lane % 4 * 2 and one more, and of the second half 8 more.
template <int kDh, int kHalves>
struct Weighted {
  float sums[kHalves][kDh / 16][4] = {};          // columns as rows
  float top[kHalves][2], total[kHalves][2] = {};  // total: of this lane's tokens

  __device__ __forceinline__ Weighted() {
#pragma unroll
    for (auto& half : top) half[0] = half[1] = -INFINITY;
  }

  // `keys`: of the page, from the warp's tokens on; `tokens` of them count.
  __device__ __forceinline__ void add(const Thread& t, const uint32_t (&q)[kHalves][kDh / 16][2], uint32_t keys,
                                      int tokens, float scale, uint32_t (&weights)[kHalves][2]) {
    const unsigned lane = t.lane;
    keys += kv_bytes(lane % 16, lane / 16 * 8);
    float s[kHalves][2][4] = {};
#pragma unroll
    for (int k = 0; k < kDh / 16; ++k) {
      uint32_t k4[4];
      ldmatrix_x4(k4, columns_on(keys, k));
#pragma unroll
      for (int half = 0; half < kHalves; ++half) mma_16x8x16(s[half][k % 2], k4, q[half][k][0], q[half][k][1]);
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float shrink[2];  // of what was added before
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[half][0][i];
        float& y = s[half][0][2 + i];
        x = static_cast<int>(lane) / 4 < tokens ? (x + s[half][1][i]) * scale : -INFINITY;
        y = static_cast<int>(lane) / 4 + 8 < tokens ? (y + s[half][1][2 + i]) * scale : -INFINITY;
        float highest = fmaxf(top[half][i], fmaxf(x, y));
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, distance));
        const float base = highest == -INFINITY ? 0 : highest;  // where no token counts yet
        shrink[i] = exp2f(top[half][i] - base);
        top[half][i] = highest;
        x = exp2f(x - base), y = exp2f(y - base);
        total[half][i] = total[half][i] * shrink[i] + (x + y);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights[half][i] = pack_bf16(s[half][0][2 * i], s[half][0][2 * i + 1]);
        transpose(weights[half][i]);
      }
      if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1))
#pragma unroll
        for (auto& sum : sums[half])
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] *= shrink[i % 2];
    }
  }
  __device__ __forceinline__ void add_values(const Thread& t, uint32_t values, const uint32_t (&weights)[kHalves][2]) {
    const unsigned lane = t.lane;
    values += kv_bytes(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
#pragma unroll
    for (int n = 0; n < kDh / 16; ++n) {
      uint32_t v4[4];
      ldmatrix_x4_trans(v4, columns_on(values, n));
#pragma unroll
      for (int half = 0; half < kHalves; ++half) mma_16x8x16(sums[half][n], v4, weights[half][0], weights[half][1]);
    }
  }
};

// Adds up what the warps have of a span: head warp + 8 i of the group to take(i, its top and total, sums).
template <int kDh, int kHalves, class Take>
__device__ __forceinline__ void end_span(const Thread& t, AttentionShared<kDh>& shared,
                                         const Weighted<kDh, kHalves>& mine, int group, const Take& take) {
  constexpr int kValues = kDh / 32;
  const int warp = t.warp, lane = t.lane;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    sync_consumers();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = mine.total[half][i];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) total += __shfl_xor_sync(~0u, total, distance);
      if (lane < 4) shared.stats[warp][8 * half + 2 * lane + i] = make_float2(mine.top[half][i], total);
#pragma unroll
      for (int n = 0; n < kDh / 16; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          shared.sums[warp][lane % 4 * 2 + i][16 * n + 8 * j + lane / 4] = mine.sums[half][n][2 * j + i];
    }
    sync_consumers();
    const int head = warp + 8 * half;
    if (head >= group) continue;
    chain::Floats<kValues> sums = {};
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) top = fmaxf(top, shared.stats[w][head].x);
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) {
      const float2 stats = shared.stats[w][head];
      const float weight = exp2f(stats.x - top);
      const auto x = *reinterpret_cast<const chain::Floats<kValues>*>(&shared.sums[w][warp][lane * kValues]);
      total += weight * stats.y;
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums.v[i] += weight * x.v[i];
    }
    take(half, make_float2(top, total), sums);
  }
}

template <int kDh, int kHalves, class Wait>
__device__ __forceinline__ void attend(const Params& p, int layer, const Memory& memory, const Walk& walk, Cursor c,
                                       Turn& turn, const Wait& wait_for_sums) {
  constexpr int kValues = kDh / 32;
  AttentionShared<kDh>& shared = *reinterpret_cast<AttentionShared<kDh>*>(memory.x_data);
  static_assert(sizeof(shared) <= kXRing);
  const chain::Attention& a = p.attention;
  const LayerView& view = p.layers[layer];
  const Thread thread;
  const int warp = thread.warp, lane = thread.lane;
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
    mbarrier_arrive(memory.empty(t.slot), 2);  // by every lane of a warpgroup, which may have mended the slot
  };
  uint32_t q[kHalves][kDh / 16][2] = {};
  chain::Spans<kValues> sum[kHalves];  // of this warp's heads, from the first span on
  int before = 0;                      // spans of the sequence that are not here
  bool is_new = true;
  for (Cursor next = c; !walk.done(c); c = next) {
    walk.next_span(next);
    if (is_new || c.page == 0) {
      prepare(thread, p, view, memory, shared, c, wait_for_sums);
      sync_consumers();
      allow_in_flight(memory, kInFlight);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bf16* from = &shared.q[lane / 4 + 8 * half][lane % 4 * 2];
#pragma unroll
        for (int k = 0; k < kDh / 8; ++k)
          q[half][k / 2][k % 2] = lane / 4 + 8 * half < group ? *reinterpret_cast<const uint32_t*>(from + 8 * k) : 0;
        sum[half] = {};
      }
      before = c.index;
      is_new = false;
    }
    Weighted<kDh, kHalves> mine;
    int tokens = c.length - (c.page + warpgroup) * kKvPageTokens - first;  // from this warp's on
    for (int left = walk.pages(c); left > 0; left -= kStepPages, tokens -= kStepPages * kKvPageTokens) {
      const int pages = min(left, kStepPages);
      const Turn key_turn = slot_of(warpgroup), value_turn = slot_of(pages + warpgroup);
      turn.advance(2 * pages, kSlots);
      if (warpgroup >= pages) continue;
      const uint32_t keys = wait(key_turn);
      const bool newest = tokens > 0 && tokens <= 16;
      if (tokens <= 16) {
        wait(value_turn);
        mend(thread, shared, first, first + tokens - 1, memory.ring_data + key_turn.slot * kSlotBytes,
             memory.ring_data + value_turn.slot * kSlotBytes);
      }
      uint32_t weights[kHalves][2];
      mine.add(thread, q, keys + first * 128, tokens, scale, weights);
      release(key_turn);
      mine.add_values(thread, wait(value_turn) + first * 128, weights);
      release(value_turn);
      if (newest) append(thread, a, view.kv, shared, c);
    }

    if (walk.done(next)) allow_in_flight(memory, kInFlightBetween);
    const int item = c.b * a.kv_heads + c.kv_head, spans = chain::spans_of(c.pages);
    const auto place = [&](int span, int i) {
      return (static_cast<int64_t>(item) * a.max_spans + span) * group + warp + 8 * i;
    };
    const bool leaves = c.index + 1 == spans || walk.done(next);
    auto& stored = shared.stored[warp];
    // What the warp has written there goes to global memory, by store() of `pieces` lanes.
    const auto store_pieces = [&](int pieces, const auto& store) {
      fence_proxy_async_shared();
      __syncwarp();
      if (lane < pieces) {
        store();
        bulk_store_commit();
      }
    };
    const auto wait_stored = [&] {
      bulk_store_wait_read();
      __syncwarp();
    };
    end_span(thread, shared, mine, group, [&](int i, float2 stats, const chain::Floats<kValues>& x) {
      if (before == 0) return sum[i].add(stats, x);
      const int64_t to = place(c.index, i);
      wait_stored();
      if (lane == 0) stored.stats = {stats.x, stats.y};
      *reinterpret_cast<chain::Floats<kValues>*>(stored.sums + lane * kValues) = x;
      store_pieces(2, [&] {
        if (lane == 0)
          bulk_store(a.sums + to * kDh, shared_address(stored.sums), sizeof(stored.sums));
        else
          bulk_store(a.stats + to, shared_address(&stored.stats), sizeof(stored.stats));
      });
    });
    if (!leaves) continue;
    if (before > 0) {
      bulk_store_wait();
      sync_consumers();
      if (thread.index == 0) add_relaxed(p.published + item, static_cast<unsigned>(c.index + 1 - before));
      continue;
    }
    if (c.index + 1 < spans) {
      const auto others = static_cast<unsigned>((layer + 1) * (spans - c.index - 1));
      if (thread.index == 0)
        while (load_acquire(p.published + item) < others) {
        }
      sync_consumers();
    }
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      if (warp + 8 * i >= group) continue;
#pragma unroll 4
      for (int span = c.index + 1; span < spans; ++span)
        sum[i].add(a.stats + place(span, i), a.sums + place(span, i) * kDh + lane * kValues);
      const int column = (c.kv_head * group + warp + 8 * i) * kDh;
      wait_stored();
      sum[i].store(stored.y + place_in_row(c.b, lane * kValues));
      store_pieces(kDh / kBlockCols,
                   [&] { store_piece(a.y, c.b, column + lane * kBlockCols, stored.y + lane * kBlockCols); });
    }
  }
}

}  // namespace saccade::cuda::batch
