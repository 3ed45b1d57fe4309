// Products of the persistent decode kernel: strips of weights from the ring times up to 8 rows.
//
// A warp multiplies block `warp` of every page: weights are the 16 rows of mma m16n8k16, activations its 8 columns, so
// a step costs the same for 1 to 8 rows. Thread (group, quad) takes the 16-byte chunks 2 quad and 2 quad + 1 of rows
// `group` and `group + 8` of the block, and of row `group` of the activations: both operands see the columns in the
// same order, all loads are 16 bytes wide, and eight lanes of a shared load touch all banks once.
//
// What a layer executes must stay small: it runs once a layer, and instructions that left the caches cost more than
// they do. So all products are one loop, and activations come from shared memory, where threads share their work.
#pragma once

#include "kernels/cuda/decode_persistent_attention.cuh"
#include "kernels/cuda/decode_persistent_exchange.cuh"

namespace saccade::cuda::persistent {

// Brings all pages through the ring in the order in which they are used: of each layer the strips of qkv, keys and
// values of this CTA's items, and the other strips. Weights depend on nothing but free places. One thread.
struct PageStream {
  const Params& p;
  Shared& s;
  uint8_t* ring;
  int slot = 0, landing = 0, flying = 0;
  uint32_t parity = 1, landing_parity = 0;

  __device__ __forceinline__ void bring(const void* from, uint32_t bytes) {
    for (const int most = atomicAdd(&s.in_flight, 0); flying >= most; --flying) {
      mbarrier_wait(shared_address(&s.full[landing]), landing_parity);
      if (++landing == p.ring) landing = 0, landing_parity ^= 1;
    }
    const uint32_t full = shared_address(&s.full[slot]);
    mbarrier_wait(shared_address(&s.empty[slot]), parity);
    mbarrier_expect(full, bytes);
    bulk_copy_evict_first(shared_address(ring + slot * kPageBytes), from, bytes, full);
    ++flying;
    if (++slot == p.ring) slot = 0, parity ^= 1;
  }
};
__device__ __forceinline__ void stream_pages(const Params& p, Shared& s, uint8_t* ring) {
  PageStream stream{p, s, ring};
  Cursor first;
  seek(p, s, static_cast<int>(blockIdx.x), first);
  const int64_t kv_elements = kKvPageTokens * p.head_dim;
  for (int i = 0; i <= 4 * p.depth; ++i) {
    const int layer = i / 4, phase = i < 4 * p.depth ? i % 4 : kHead;
    if (phase == kOutput)
      for (Cursor c = first; c.b < p.rows; step(p, s, c)) {
        const bf16* keys = p.layers[layer].kv + (int64_t{c.id} * 2 * p.kv_heads + c.kv_head) * kv_elements;
        stream.bring(keys, static_cast<uint32_t>(kv_elements * sizeof(bf16)));
        stream.bring(keys + p.kv_heads * kv_elements, static_cast<uint32_t>(kv_elements * sizeof(bf16)));
      }
    const Share share(p, layer, phase);
    for (int strip = 0; strip < share.count; ++strip) {
      const auto* from =
          reinterpret_cast<const uint8_t*>(share.w) + int64_t{share.strip(strip)} * share.blocks * kBlockBytes;
      for (int block = 0; block < share.blocks; block += kPageBlocks)
        stream.bring(from + block * kBlockBytes, min(kPageBlocks, share.blocks - block) * kBlockBytes);
    }
  }
}

// ---- Activations: chunks of 8 values, swizzled as those of weights: chunk c of row b is at c ^ (b & 7).

__device__ __forceinline__ uint4* chunk_at(uint8_t* x, int row_bytes, int b, int c) {
  return reinterpret_cast<uint4*>(x + b * row_bytes + (c ^ (b & 7)) * 16);
}

__device__ __forceinline__ float squares_of(const uint4& x) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t pair = (&x.x)[i];
    sum += low(pair) * low(pair) + high(pair) * high(pair);
  }
  return sum;
}
__device__ __forceinline__ void normalise(uint4& x, const uint4& weight, float scale) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t& pair = (&x.x)[i];
    const uint32_t scaled = pack_bf16(low(pair) * scale, high(pair) * scale), w = (&weight.x)[i];
    const __nv_bfloat162 product =
        __hmul2(reinterpret_cast<const __nv_bfloat162&>(scaled), reinterpret_cast<const __nv_bfloat162&>(w));
    pair = reinterpret_cast<const uint32_t&>(product);
  }
}

// rms_norm(h) to shared memory, as soon as h is there; with `given` it is, and may have zeros. Thread i has chunks i
// and i + 256 of every row.
template <int kRows, int kChunks>
__device__ __forceinline__ void stage_norm(Thread& t, const bf16* h, bool given, const bf16* norm) {
  const Params& p = t.p;
  const int thread = static_cast<int>(threadIdx.x), chunks = p.width / 8;
  uint4 x[kChunks][kRows] = {}, weight[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
    if (thread + i * kThreads < chunks) weight[i] = load_16(norm + (thread + i * kThreads) * 8);
  if (kRows * kChunks > 8 && !given && thread < chunks)  // many that ask for all would slow down those that compute it
    while (missing(load_16(h + thread * 8))) {
    }
  bool again;
  do {
    again = false;
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        const int c = thread + i * kThreads;
        if (c < chunks && b < p.rows && missing(x[i][b])) {
          x[i][b] = load_16(h + b * p.width + c * 8);
          again = !given;
        }
      }
  } while (__any_sync(~0u, again));

  float(&all_squares)[kWarps][kMaxRows] = t.s.squares[t.norms++ & 1];
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) squares += squares_of(x[i][b]);
#pragma unroll
    for (int j = 16; j > 0; j /= 2) squares += __shfl_xor_sync(~0u, squares, j);
    if (t.lane == 0) all_squares[t.warp][b] = squares;
  }
  sync_warps();
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) squares += all_squares[i][t.lane % kMaxRows];
  const float scale_of_lane = 1 / sqrtf(squares / static_cast<float>(p.width) + p.eps);
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    const float scale = __shfl_sync(~0u, scale_of_lane, b);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int c = thread + i * kThreads;
      if (c >= chunks || b >= p.rows) continue;
      normalise(x[i][b], weight[i], scale);
      *chunk_at(t.x, p.width * 2, b, c) = x[i][b];
    }
  }
  sync_warps();
}

// A thread's chunks of one tile of x [B,K].
template <int kRows>
struct Tile {
  static constexpr int kChunks = tile_chunks(kRows), kColumns = tile_columns(kRows);
  uint4 x[kChunks];

  // Asks for those that are missing; whether there were any.
  __device__ __forceinline__ bool load_missing(const Thread& t, const bf16* from, int columns, int tile) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = static_cast<int>(threadIdx.x) + i * kThreads;
      const int b = chunk / (kColumns / 8), column = tile * kColumns + chunk % (kColumns / 8) * 8;
      if (b < t.p.rows && column < columns && missing(x[i])) {
        x[i] = load_16(from + b * columns + column);
        any = true;
      }
    }
    return any;
  }
  __device__ __forceinline__ void store(const Thread& t, int tile) const {
    uint8_t* to = t.x + (tile & 1) * (kChunks * kThreads * 16);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = static_cast<int>(threadIdx.x) + i * kThreads;
      *chunk_at(to, kColumns * 2, chunk / (kColumns / 8), chunk % (kColumns / 8)) = x[i];
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) x[i] = make_uint4(0, 0, 0, 0);
  }
};

// ---- Products

// A thread's operands of one page, and its place in the ring.
struct PageOfStrip {
  uint4 w[2][2], x[2];
  int slot;
};
// Waits for the next page; x: the row of activations `group` at the warp's block.
__device__ __forceinline__ void take_page(Thread& t, PageOfStrip& page, const uint8_t* x, bool has_block) {
  const uint8_t* block = t.wait_page() + t.warp * kBlockBytes + t.group * 128;
  page.slot = t.next_page();
  const int chunk = ((2 * t.quad) ^ t.group) * 16;
  if (!has_block) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      page.w[i][half] = *reinterpret_cast<const uint4*>(block + half * 1024 + (chunk ^ (i * 16)));
    page.x[i] = make_uint4(0, 0, 0, 0);
    if (t.group < t.p.rows) page.x[i] = *reinterpret_cast<const uint4*>(x + (chunk ^ (i * 16)));
  }
}
// sum += the page's block of this warp x. Two sums, so that products need not wait for each other.
__device__ __forceinline__ void multiply_page(const Thread& t, float (&sum)[2][4], const PageOfStrip& page,
                                              bool has_block) {
  if (has_block) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 &a = page.w[i][0], &b = page.w[i][1], &x = page.x[i];
      mma_16x8x16(sum[0], {a.x, b.x, a.y, b.y}, x.x, x.y);
      mma_16x8x16(sum[1], {a.z, b.z, a.w, b.w}, x.z, x.w);
    }
  }
  t.free_page(page.slot);
}
// The next `blocks` blocks of a strip; x: as many of the activations.
__device__ __forceinline__ void multiply(Thread& t, float (&sum)[2][4], const uint8_t* x, int row_bytes, int blocks) {
  x += t.group * row_bytes + t.warp * (2 * kBlockCols);
  PageOfStrip page, next;
  take_page(t, page, x, t.warp < blocks);
#pragma unroll 2
  for (int block = t.warp; block - t.warp < blocks;
       block += kPageBlocks) {  // the next is taken before this is multiplied
    x += kPageBlocks * 2 * kBlockCols;
    if (block - t.warp + kPageBlocks < blocks) take_page(t, next, x, block + kPageBlocks < blocks);
    multiply_page(t, sum, page, block < blocks);
    page = next;
  }
}

// The hidden state that a layer begins with.
__device__ __forceinline__ const bf16* input_of(const Thread& t, int layer) {
  return layer == 0 ? t.p.h : of_turn(t.p.out, t.turn - 1, t.p.width);
}

// What the end of a strip needs from memory, asked for before its products. Of rows 2 quad and 2 quad + 1 of the
// batch (j), and rows group and group + 8 of the strip.
struct Operands {
  float add[2][2];           // [j][half]: what is in h; or [.][half]: the bias
  float cosine[2], sine[2];  // [j]
  int slot[2];               // [j]
};
__device__ __forceinline__ void load_operands(const Thread& t, int layer, int phase, int strip, Operands& o) {
  const Params& p = t.p;
  const int row = strip * kStripRows + t.group;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int b = 2 * t.quad + j;
    if (b >= p.rows) continue;
    if (phase == kOutput || phase == kDown) {
      const bf16* h = phase == kOutput ? input_of(t, layer) : of_turn(p.middle, t.turn, p.width);
      o.add[j][0] = load_bf16(h + b * p.width + row);
      o.add[j][1] = load_bf16(h + b * p.width + row + 8);
    } else if (phase == kQkv) {
      const bf16* bias = t.s.views[layer & 1].bias;
      o.add[j][0] = bias ? __bfloat162float(bias[row]) : 0;
      o.add[j][1] = bias ? __bfloat162float(bias[row + 8]) : 0;
      const float* turn = p.cos_sin + b * p.head_dim + (row - t.group) % p.head_dim / 2 + t.group;
      o.cosine[j] = turn[0];
      o.sine[j] = turn[p.head_dim / 2];
      o.slot[j] = p.slots[b];
    }
  }
}

// v[j] and v[2 + j]: rows group and group + 8 of the strip for row 2 quad + j of the batch.
__device__ __forceinline__ void store_strip(const Thread& t, int layer, int phase, int strip, const float (&v)[4],
                                            const Operands& o) {
  const Params& p = t.p;
  const int row = strip * kStripRows + t.group;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int b = 2 * t.quad + j;
    if (b >= p.rows) continue;
    float lo = v[j], hi = v[2 + j];
    if (phase == kQkv) {
      const int head = row / p.head_dim, place = row % p.head_dim;
      lo = rounded(lo + o.add[j][0]);
      hi = rounded(hi + o.add[j][1]);
      if (head < p.heads + p.kv_heads) {
        const float x = lo, y = hi;
        lo = rounded(x * o.cosine[j]) - rounded(y * o.sine[j]);
        hi = rounded(y * o.cosine[j]) + rounded(x * o.sine[j]);
      }
      bf16* to = of_turn(p.qkv, t.turn, p.qkv_rows) + b * p.qkv_rows + row;
      publish(to, lo);
      publish(to + 8, hi);
      if (head >= p.heads) {  // for later steps: page of the cache, k | v, kv head
        const int64_t i = o.slot[j] / kKvPageTokens * 2 * p.kv_heads + head - p.heads;
        bf16* block = t.s.views[layer & 1].kv + i * kKvPageTokens * p.head_dim;
        block[kv_offset(o.slot[j] % kKvPageTokens, place)] = __float2bfloat16_rn(lo);
        block[kv_offset(o.slot[j] % kKvPageTokens, place + 8)] = __float2bfloat16_rn(hi);
      }
    } else if (phase == kGateUp) {
      const float gate = rounded(lo), up = rounded(hi);
      const float silu = rounded(gate / (1 + expf(-gate)));
      publish(of_turn(p.activated, t.turn, p.ffn) + b * p.ffn + strip * 8 + t.group, silu * up);
    } else if (phase == kHead) {
      float* to = p.logits + int64_t{b} * p.vocabulary + row;
      if (row < p.vocabulary) to[0] = rounded(lo);
      if (row + 8 < p.vocabulary) to[8] = rounded(hi);
    } else {
      bf16* to = of_turn(phase == kOutput ? p.middle : p.out, t.turn, p.width) + b * p.width + row;
      lo = o.add[j][0] + rounded(lo);
      hi = o.add[j][1] + rounded(hi);
      publish(to, lo);
      publish(to + 8, hi);
      if (phase == kDown && layer + 1 == p.depth) {
        p.h[b * p.width + row] = __float2bfloat16_rn(lo);
        p.h[b * p.width + row + 8] = __float2bfloat16_rn(hi);
      }
    }
  }
}

// The strips of a phase as their sums are added: by one warp each, in turns.
struct Ends {
  const Share& share;
  int layer, phase, mine;  // this warp's next strip
  Operands operands;

  __device__ __forceinline__ Ends(const Thread& t, const Share& of, int in_layer, int in_phase)
      : share(of), layer(in_layer), phase(in_phase), mine((t.warp - t.strips) & (kWarps - 1)), operands{} {
    load(t);
  }
  __device__ __forceinline__ void load(const Thread& t) {
    if (mine < share.count) load_operands(t, layer, phase, share.strip(mine), operands);
  }
};

// Adds the warps' sums of strip `i` of the share in their order; one warp does, while the others go on.
__device__ __forceinline__ void end_strip(Thread& t, Ends& ends, int i, float (&sum)[2][4]) {
  const int buffer = t.strips % kSumBuffers;
  const uint32_t round = t.strips / kSumBuffers & 1;
  const uint32_t full = shared_address(&t.s.sums_full[buffer]), empty = shared_address(&t.s.sums_empty[buffer]);
  mbarrier_wait(empty, round ^ 1);
  t.s.sums[buffer][t.warp][t.lane] =
      make_float4(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1], sum[0][2] + sum[1][2], sum[0][3] + sum[1][3]);
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[0][j] = sum[1][j] = 0;
  mbarrier_arrive(full);
  ++t.strips;
  if (ends.mine != i) return;

  mbarrier_wait(full, round);
  __syncwarp();
  float v[4] = {};
#pragma unroll
  for (int j = 0; j < kWarps; ++j) {
    const float4 part = t.s.sums[buffer][j][t.lane];
    v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
  }
  store_strip(t, ends.layer, ends.phase, ends.share.strip(i), v, ends.operands);
  mbarrier_arrive(empty);
  ends.mine += kWarps;
  ends.load(t);
}

// The products of one phase.
template <int kRows, int kChunks>
__device__ __forceinline__ void products(Thread& t, int layer, int phase) {
  using TileOf = Tile<kRows>;
  const Params& p = t.p;
  const Share share(p, layer, phase);
  Ends ends(t, share, layer, phase);
  const bool normed = phase != kOutput && phase != kDown;
  const bf16* x = phase == kDown ? of_turn(p.activated, t.turn, p.ffn) : of_turn(p.attended, t.turn, p.q_width);
  const int columns = share.blocks * kBlockCols, tile_blocks = TileOf::kColumns / kBlockCols;
  const int tiles = normed ? 1 : (share.blocks + tile_blocks - 1) / tile_blocks;
  const int row_bytes = normed ? p.width * 2 : TileOf::kColumns * 2, total = share.count * tiles;
  TileOf tile;
  if (normed) {
    const LayerView& view = t.s.views[layer & 1];
    const bf16* h = phase == kGateUp ? of_turn(p.middle, t.turn, p.width) : input_of(t, layer);
    stage_norm<kRows, kChunks>(t, h, layer == 0 && phase == kQkv,
                               phase == kQkv      ? view.attention_norm
                               : phase == kGateUp ? view.mlp_norm
                                                  : p.norm);
    if (t.warp == 0 && t.lane == 0) {
      if (phase == kQkv)
        mbarrier_arrive(shared_address(&t.s.arrived));
      else
        atomicExch(&t.s.in_flight, kInFlight);
    }
  } else if (total > 0) {
    tile.clear();
    while (__any_sync(~0u, tile.load_missing(t, x, columns, 0))) {
    }
    sync_warps();  // other warps may still read what is there
    tile.store(t, 0);
    sync_warps();
  }
  float sum[2][4] = {};
  for (int i = 0, strip = 0, now = 0; i < total; ++i) {
    const int next = now + 1 < tiles ? now + 1 : 0;
    const bool stages = tiles > 1 && i + 1 < total;
    if (stages) {
      tile.clear();
      tile.load_missing(t, x, columns, next);
    }
    multiply(t, sum, t.x + (normed || (i & 1) == 0 || tiles == 1 ? 0 : TileOf::kChunks * kThreads * 16), row_bytes,
             normed ? share.blocks : min(tile_blocks, share.blocks - now * tile_blocks));
    if (stages) {
      while (__any_sync(~0u, tile.load_missing(t, x, columns, next))) {
      }
      tile.store(t, i + 1);
      sync_warps();
    }
    if (next == 0) end_strip(t, ends, strip++, sum);
    now = next;
  }
}

}  // namespace saccade::cuda::persistent
