// Products of the persistent decode kernel: strips of weights from the ring times up to 8 rows.
//
// A warp multiplies block `warp` of every page: weights are the 16 rows of mma m16n8k16, activations its 8 columns, so
// a step costs the same for 1 to 8 rows. Thread (group, quad) takes the 16-byte chunks 2 quad and 2 quad + 1 of rows
// `group` and `group + 8` of the block, and of row `group` of the activations: both operands see the columns in the
// same order, all loads are 16 bytes wide, and eight lanes of a shared load touch all banks once.
#pragma once

#include "kernels/cuda/decode_persistent.cuh"

namespace saccade::cuda::persistent {

// Walks over the pages of all strips of this CTA, in the order in which they are multiplied.
struct PageWalk {
  const Params& p;
  int phase = -1, strip = 0, block = 0, count = 0, blocks = 0;
  const uint8_t* from = nullptr;

  __device__ __forceinline__ explicit PageWalk(const Params& params) : p(params) { next_strip(); }
  __device__ __forceinline__ bool more() const { return phase <= 4 * p.depth; }
  __device__ __forceinline__ uint32_t bytes() const { return min(kPageBlocks, blocks - block) * kBlockBytes; }
  __device__ __forceinline__ void next() {
    from += bytes();
    block += kPageBlocks;
    if (block >= blocks) next_strip();
  }
  __device__ __forceinline__ void next_strip() {
    block = 0;
    ++strip;
    while (strip >= count) {
      strip = 0;
      if (++phase > 4 * p.depth) return;
      count = share().count;
    }
    const Share now = share();
    blocks = now.blocks;
    from = reinterpret_cast<const uint8_t*>(now.w) + int64_t{now.strip(strip)} * blocks * kBlockBytes;
  }
  __device__ __forceinline__ Share share() const {
    return Share(p, phase / 4, phase < 4 * p.depth ? phase % 4 : kHead);
  }
};

// Brings the pages through the ring. Weights depend on nothing but free places; while there is none, the next pages go
// to the L2 cache at a pace that leaves memory to others.
__device__ __forceinline__ void stream_weights(const Params& p, Shared& s) {
  int slot = 0, landing = 0, flying = 0, ahead_pages = 0;
  uint32_t parity = 1, landing_parity = 0;
  unsigned last = 0;
  for (PageWalk page(p), ahead(p); page.more(); page.next()) {
    for (; flying >= s.in_flight; --flying) {
      mbarrier_wait(shared_address(&s.full[landing]), landing_parity);
      if (++landing == kRing) landing = 0, landing_parity ^= 1;
    }
    while (!mbarrier_test(shared_address(&s.empty[slot]), parity)) {
      if (ahead_pages == kAhead || static_cast<unsigned>(clock()) - last < kPace) continue;
      last = static_cast<unsigned>(clock());
      if (ahead_pages++ == 0) {
        ahead.phase = page.phase, ahead.strip = page.strip, ahead.block = page.block;
        ahead.count = page.count, ahead.blocks = page.blocks, ahead.from = page.from;
      }
      if (!ahead.more()) continue;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(ahead.from), "r"(ahead.bytes()) : "memory");
      ahead.next();
    }
    if (ahead_pages > 0) --ahead_pages;
    const uint32_t full = shared_address(&s.full[slot]);
    mbarrier_expect(full, page.bytes());
    bulk_copy_evict_first(shared_address(s.ring[slot]), page.from, page.bytes(), full);
    ++flying;
    if (++slot == kRing) slot = 0, parity ^= 1;
  }
}

// A thread's weights of one page, and the place in the ring where they are.
struct PageWeights {
  uint4 w[2][2];
  int slot;
};
// Waits for the next page.
__device__ __forceinline__ void take_page(Thread& t, PageWeights& page, bool has_block) {
  mbarrier_wait(shared_address(&t.s.full[t.slot]), t.parity);
  __syncwarp();
  page.slot = t.slot;
  if (has_block) {
    const uint8_t* block = t.s.ring[t.slot] + t.warp * kBlockBytes + t.group * 128;
    const int chunk = ((2 * t.quad) ^ t.group) * 16;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        page.w[i][half] = *reinterpret_cast<const uint4*>(block + half * 1024 + (chunk ^ (i * 16)));
  }
  if (++t.slot == kRing) t.slot = 0, t.parity ^= 1;
}
// sum += the page's block of this warp x; then the page is free. Two sums, so that products need not wait for each
// other.
__device__ __forceinline__ void multiply_page(Thread& t, float (&sum)[2][4], const PageWeights& page,
                                              const uint4 (&x)[2], bool has_block) {
  if (has_block) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 &a = page.w[i][0], &b = page.w[i][1];
      mma_16x8x16(sum[0], {a.x, b.x, a.y, b.y}, x[i].x, x[i].y);
      mma_16x8x16(sum[1], {a.z, b.z, a.w, b.w}, x[i].z, x[i].w);
    }
  }
  // Not before the products have their operands: a load of shared memory can linger behind loads of global memory.
  __syncwarp();
  if (t.lane == 0) mbarrier_arrive(shared_address(&t.s.empty[page.slot]));
}

// What the end of a strip needs from memory, asked for when it begins. Of rows 2 quad and 2 quad + 1 of the
// batch (j), and rows group and group + 8 of the strip.
struct Operands {
  float add[2][2];           // [j][half]: what is in h; or [.][half]: the bias
  float cosine[2], sine[2];  // [j]
  int slot[2];               // [j]
};
__device__ __forceinline__ Operands load_operands(const Thread& t, int layer, int phase, int strip) {
  const Params& p = t.p;
  Operands o = {};
  if (t.strips % kWarps != t.warp) return o;
  const int row = strip * kStripRows + t.group;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int b = 2 * t.quad + j;
    if (b >= p.rows) continue;
    if (phase == kOutput || phase == kDown) {
      o.add[j][0] = load_bf16(p.h + b * p.width + row);
      o.add[j][1] = load_bf16(p.h + b * p.width + row + 8);
    } else if (phase == kQkv) {
      const bf16* bias = t.s.views[layer & 1].bias;
      if (bias) o.add[j][0] = __bfloat162float(bias[row]), o.add[j][1] = __bfloat162float(bias[row + 8]);
      const float* turn = p.cos_sin + b * p.head_dim + (row - t.group) % p.head_dim / 2 + t.group;
      o.cosine[j] = turn[0];
      o.sine[j] = turn[p.head_dim / 2];
      o.slot[j] = p.slots[b];
    }
  }
  return o;
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
      bf16 *to = p.q + b * p.heads * p.head_dim + row, *to_high = to + 8;
      if (head >= p.heads) {  // page of the cache, k | v, kv head
        const int64_t i = o.slot[j] / kKvPageTokens * 2 * p.kv_heads + head - p.heads;
        bf16* block = t.s.views[layer & 1].kv + i * kKvPageTokens * p.head_dim;
        to = block + kv_offset(o.slot[j] % kKvPageTokens, place);
        to_high = block + kv_offset(o.slot[j] % kKvPageTokens, place + 8);
      }
      *to = __float2bfloat16_rn(lo);
      *to_high = __float2bfloat16_rn(hi);
    } else if (phase == kGateUp) {
      const float gate = rounded(lo), up = rounded(hi);
      const float silu = rounded(gate / (1 + expf(-gate)));
      p.activated[b * p.ffn + strip * 8 + t.group] = __float2bfloat16_rn(silu * up);
    } else if (phase == kHead) {
      float* to = p.logits + int64_t{b} * p.vocabulary + row;
      if (row < p.vocabulary) to[0] = rounded(lo);
      if (row + 8 < p.vocabulary) to[8] = rounded(hi);
    } else {
      bf16* to = p.h + b * p.width + row;
      to[0] = __float2bfloat16_rn(o.add[j][0] + rounded(lo));
      to[8] = __float2bfloat16_rn(o.add[j][1] + rounded(hi));
    }
  }
}

// Adds the warps' sums of a strip in their order; one warp does, another for every strip, while the others go on.
__device__ __forceinline__ void end_strip(Thread& t, int layer, int phase, int strip, float (&sum)[2][4],
                                          const Operands& operands) {
  const int buffer = t.strips % kSumBuffers;
  const uint32_t round = t.strips / kSumBuffers & 1;
  const uint32_t full = shared_address(&t.s.sums_full[buffer]), empty = shared_address(&t.s.sums_empty[buffer]);
  mbarrier_wait(empty, round ^ 1);
  t.s.sums[buffer][t.warp][t.lane] =
      make_float4(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1], sum[0][2] + sum[1][2], sum[0][3] + sum[1][3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[0][i] = sum[1][i] = 0;
  __syncwarp();
  if (t.lane == 0) mbarrier_arrive(full);
  if (t.strips++ % kWarps != t.warp) return;

  mbarrier_wait(full, round);
  __syncwarp();
  float v[4] = {};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const float4 part = t.s.sums[buffer][i][t.lane];
    v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
  }
  store_strip(t, layer, phase, strip, v, operands);
  __syncwarp();
  if (t.lane == 0) mbarrier_arrive(empty);
}

// Row `group` of x [B,K], this thread's values of the warp's block of a page.
__device__ __forceinline__ void load_block(const Thread& t, const bf16* x, int blocks, int page, uint4 (&to)[2]) {
  const int block = page * kPageBlocks + t.warp;
  to[0] = to[1] = make_uint4(0, 0, 0, 0);
  if (t.group >= t.p.rows || block >= blocks) return;
  const bf16* from = x + (t.group * blocks + block) * kBlockCols + 16 * t.quad;
  to[0] = load_16(from);
  to[1] = load_16(from + 8);
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
    const uint32_t scaled = pack(low(pair) * scale, high(pair) * scale), w = (&weight.x)[i];
    const __nv_bfloat162 product =
        __hmul2(reinterpret_cast<const __nv_bfloat162&>(scaled), reinterpret_cast<const __nv_bfloat162&>(w));
    pair = reinterpret_cast<const uint32_t&>(product);
  }
}

// Waits for the grid and multiplies rms_norm(h) by this CTA's strips. All of the thread's activations stay in
// registers.
template <int kPages>
__device__ __forceinline__ void normed_products(Thread& t, const bf16* norm, int layer, int phase) {
  const Params& p = t.p;
  const int blocks = p.width / kBlockCols;
  uint4 x[kPages][2], weight[kPages][2];
#pragma unroll
  for (int page = 0; page < kPages; ++page) {
    const int block = page * kPageBlocks + t.warp;
    weight[page][0] = weight[page][1] = make_uint4(0, 0, 0, 0);
    if (block >= blocks) continue;
    const bf16* from = norm + block * kBlockCols + 16 * t.quad;
    weight[page][0] = load_16(from);
    weight[page][1] = load_16(from + 8);
  }
  if (layer > 0 || phase != kQkv) grid_wait(t);
#pragma unroll
  for (int page = 0; page < kPages; ++page) load_block(t, p.h, blocks, page, x[page]);
  float squares = 0;
#pragma unroll
  for (int page = 0; page < kPages; ++page) squares += squares_of(x[page][0]) + squares_of(x[page][1]);
  squares += __shfl_xor_sync(~0u, squares, 1);
  squares += __shfl_xor_sync(~0u, squares, 2);
  if (t.quad == 0) t.s.squares[t.warp][t.group] = squares;
  sync_warps();
  squares = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) squares += t.s.squares[i][t.group];
  const float scale = 1 / sqrtf(squares / static_cast<float>(p.width) + p.eps);
#pragma unroll
  for (int page = 0; page < kPages; ++page)
#pragma unroll
    for (int i = 0; i < 2; ++i) normalise(x[page][i], weight[page][i], scale);

  if (phase != kQkv && t.warp == 0 && t.lane == 0) t.s.in_flight = kInFlight;

  float sum[2][4] = {};
  const Share share(p, layer, phase);
  for (int i = 0; i < share.count; ++i) {
    const int strip = share.strip(i);
    const Operands operands = load_operands(t, layer, phase, strip);
    constexpr bool kEarly = kPages <= 4;  // takes a page before it multiplies the one before; else registers are short
    PageWeights page[2];
    if (kEarly) take_page(t, page[0], t.warp < blocks);
#pragma unroll
    for (int k = 0; k < kPages; ++k)
      if (k * kPageBlocks < blocks) {
        const int taken = kEarly ? k + 1 : k;
        if (taken < kPages && taken * kPageBlocks < blocks)
          take_page(t, page[taken % 2], taken * kPageBlocks + t.warp < blocks);
        multiply_page(t, sum, page[k % 2], x[k], k * kPageBlocks + t.warp < blocks);
      }
    end_strip(t, layer, phase, strip, sum, operands);
  }
}

// Waits for the grid and multiplies x by this CTA's strips. Activations are loaded some pages ahead of their use.
__device__ __forceinline__ void products(Thread& t, const bf16* x, int layer, int phase) {
  constexpr int kLoaded = 8;
  const Share share(t.p, layer, phase);
  uint4 ahead[kLoaded][2];
  float sum[2][4] = {};
  grid_wait(t);
  for (int j = 0; j < share.count; ++j) {
#pragma unroll
    for (int i = 0; i < kLoaded; ++i) load_block(t, x, share.blocks, i, ahead[i]);
    const Operands operands = load_operands(t, layer, phase, share.strip(j));
    PageWeights page[2];
    take_page(t, page[0], t.warp < share.blocks);
    for (int first = 0; first * kPageBlocks < share.blocks; first += kLoaded) {
#pragma unroll
      for (int i = 0; i < kLoaded; ++i) {
        const int block = (first + i) * kPageBlocks;
        if (block >= share.blocks) break;
        if (block + kPageBlocks < share.blocks)
          take_page(t, page[(i + 1) % 2], block + kPageBlocks + t.warp < share.blocks);
        multiply_page(t, sum, page[i % 2], ahead[i], block + t.warp < share.blocks);
        load_block(t, x, share.blocks, first + kLoaded + i, ahead[i]);
      }
    }
    end_strip(t, layer, phase, share.strip(j), sum, operands);
  }
}

}  // namespace saccade::cuda::persistent
