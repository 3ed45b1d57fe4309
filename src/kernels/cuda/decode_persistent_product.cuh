// Products of the persistent decode kernel: strips of weights from the ring times up to 8 rows.
//
// A warp multiplies block `warp` of every page: weights are the 16 rows of mma m16n8k16, activations its 8 columns, so
// a step costs the same for 1 to 8 rows. Both come by ldmatrix, whose eight rows touch all banks once in the swizzle.
//
// What a layer executes must stay small: it runs once a layer, and instructions that left the caches cost more than
// they do. So all products are one loop, and activations come from shared memory, where threads share their work. With
// two warps on each scheduler an instruction takes 4 to 8 cycles: what a page costs is their number. So other warps end
// the strips (end_strips), while these go on.
#pragma once

#include "kernels/cuda/decode_persistent_attention.cuh"
#include "kernels/cuda/decode_persistent_exchange.cuh"

namespace saccade::cuda::persistent {

// All pages of this CTA in the order in which they are used: of each layer the strips of qkv, keys and values of its
// items, and the other strips.
struct PageWalk {
  int i = 0, strip = 0, block = 0;  // of the phase of the layer: the next page
  bool in_cache = false, value = false;
  Share share;
  Cursor item;

  __device__ __forceinline__ explicit PageWalk(const Params& p) : share(p, 0, kQkv) {}
  __device__ __forceinline__ void enter_next(const Params& p, const Shared& s) {
    const int phase = ++i < 4 * p.depth ? i % 4 : kHead;
    share = Share(p, i / 4, phase);
    strip = 0;
    in_cache = phase == kOutput;
    if (in_cache) item = Cursor(s);
  }
  // The next page of the phase: its bytes, 0 if there is none.
  __device__ __forceinline__ uint32_t next(const Params& p, const Shared& s, const void*& from) {
    if (in_cache && item.done(s)) in_cache = false;
    if (in_cache) {
      const int64_t elements = kKvPageTokens * p.head_dim, id = __ldg(p.page_table + item.b * p.max_pages + item.page);
      from = p.layers[i / 4].kv + ((id * 2 + value) * p.kv_heads + item.kv_head) * elements;
      value = !value;
      if (!value) item.step(s);
      return static_cast<uint32_t>(elements * sizeof(bf16));
    }
    if (strip == share.count) return 0;
    from = share.w + (int64_t{share.strip(strip)} * share.blocks + block) * kBlockElements;
    const int blocks = min(kPageBlocks, share.blocks - block);
    block += kPageBlocks;
    if (block >= share.blocks) block = 0, ++strip;
    return static_cast<uint32_t>(blocks * kBlockBytes);
  }
};

// Brings all pages through the ring: weights depend on nothing but free places. One thread.
template <int kRows>
__device__ __forceinline__ void stream_pages(const Params& p, Shared& s, uint8_t* ring) {
  int slot = 0, landing = 0, flying = 0, pages_ahead = 0;
  uint32_t parity = 1, landing_parity = 0;
  PageWalk walk(p), ahead = walk;
  const auto ask_ahead = [&] {
    if (pages_ahead == 0) ahead = walk;
    const void* from;
    uint32_t bytes = 0;
    while ((bytes = ahead.next(p, s, from)) == 0 && ahead.i < 4 * p.depth) ahead.enter_next(p, s);
    if (bytes == 0) return;
    prefetch(from, bytes);
    ++pages_ahead;
  };
  for (;;) {
    const void* from;
    const uint32_t bytes = walk.next(p, s, from);
    if (bytes == 0) {
      if (walk.i == 4 * p.depth) return;
      if (walk.i == kQkv) {  // until here there were weights alone
        pdl_wait();
        mbarrier_wait(shared_address(&s.split), 0);
      }
      walk.enter_next(p, s);
      if (walk.i % 4 == kQkv && walk.i < 4 * p.depth) atomicExch(&s.in_flight, in_flight_ahead(kRows));
      continue;
    }
    pages_ahead = max(0, pages_ahead - 1);
    for (const int most = atomicAdd(&s.in_flight, 0); flying >= most; --flying) {
      mbarrier_wait(shared_address(&s.full[landing]), landing_parity);
      if (++landing == p.ring) landing = 0, landing_parity ^= 1;
    }
    const uint32_t full = shared_address(&s.full[slot]), empty = shared_address(&s.empty[slot]);
    if (are_many(kRows) && walk.i > kQkv)
      for (auto asked = static_cast<unsigned>(clock()); !mbarrier_test(empty, parity);)
        if (pages_ahead < kPagesAhead && static_cast<unsigned>(clock()) - asked >= kAheadCycles) {
          ask_ahead();
          asked = static_cast<unsigned>(clock());
        }
    mbarrier_wait(empty, parity);
    mbarrier_expect(full, bytes);
    bulk_copy_evict_first(shared_address(ring + slot * kPageBytes), from, bytes, full);
    ++flying;
    if (++slot == p.ring) slot = 0, parity ^= 1;
  }
}

// ---- Activations: blocks of 64 columns, [block][row][64], chunks of 8 values swizzled as those of weights: chunk c of
// row b is at c ^ (b & 7). A warp multiplies every eighth block, and nobody else reads those.

template <int kRows>
__device__ __forceinline__ int chunk_at(int b, int c) {
  return c / 8 * (kRows * 128) + b * 128 + ((c ^ b) & 7) * 16;
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

// Sums over the lanes: each gets that of row lane / (32 / kRows). Lanes give away rows while they have several.
template <int kRows>
__device__ __forceinline__ float sums_of_rows(float (&v)[kRows], int lane) {
#pragma unroll
  for (int rows = kRows / 2, j = 16; j > 0; rows /= 2, j /= 2) {
    if (rows == 0) v[0] += __shfl_xor_sync(~0u, v[0], j);
#pragma unroll
    for (int b = 0; b < rows; ++b) {
      const float given = lane & j ? v[b] : v[b + rows], kept = lane & j ? v[b + rows] : v[b];
      v[b] = kept + __shfl_xor_sync(~0u, given, j);
    }
  }
  return v[0];
}

// rms_norm(h) to shared memory, as soon as h is there; with `given` it is, and may have zeros. Thread i has chunks i
// and i + 256 of every row, or of every second one for both CTAs of a cluster.
template <int kRows, int kChunks>
__device__ __forceinline__ void stage_norm(Thread& t, const bf16* h, bool given, const bf16* norm) {
  constexpr int kCtas = norm_ctas(kRows), kOwn = kRows / kCtas;
  const Params& p = t.p;
  const int thread = static_cast<int>(threadIdx.x), chunks = p.width / 8;
  const int first = kCtas > 1 ? static_cast<int>(cluster_rank()) : 0;
  const auto row = [&](int i) { return first + kCtas * i; };
  uint4 x[kChunks][kOwn] = {}, weight[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
    if (thread + i * kThreads < chunks) weight[i] = load_16(norm + (thread + i * kThreads) * 8);
  if (kOwn * kChunks > 8 && !given && thread < chunks)  // many that ask for all would slow down those that compute it
    while (missing(load_16(h + thread * 8))) {
    }
  bool again;
  do {
    again = false;
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
#pragma unroll
      for (int b = 0; b < kOwn; ++b) {
        const int c = thread + i * kThreads;
        if (c < chunks && row(b) < p.rows && missing(x[i][b])) {
          x[i][b] = load_16(h + row(b) * p.width + c * 8);
          again = !given;
        }
      }
  } while (__any_sync(~0u, again));

  const int turn = t.norms++ & 1;
  float(&all_squares)[kWarps][kMaxRows] = t.s.squares[turn];
  float row_squares[kOwn] = {};
#pragma unroll
  for (int b = 0; b < kOwn; ++b)
#pragma unroll
    for (int i = 0; i < kChunks; ++i) row_squares[b] += squares_of(x[i][b]);
  const float of_row = sums_of_rows(row_squares, t.lane);
  if (t.lane % (32 / kOwn) == 0) all_squares[t.warp][t.lane / (32 / kOwn)] = of_row;
  sync_warps();
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) squares += all_squares[i][t.lane % kMaxRows];
  const float scale_of_lane = rsqrtf(squares * p.inverse_width + p.eps);
  uint32_t peer_x = 0, peer_rows = 0;
  if constexpr (kCtas > 1) {
    const uint32_t peer = cluster_rank() ^ 1;
    peer_x = cluster_address(shared_address(t.x), peer);
    peer_rows = cluster_address(shared_address(&t.s.peer_rows), peer);
    if (thread == 0)
      mbarrier_expect(shared_address(&t.s.peer_rows), (p.rows + static_cast<int>(1 - peer)) / 2 * p.width * 2);
    mbarrier_wait_cluster(shared_address(&t.s.peer_free), turn ^ 1);
  }
#pragma unroll
  for (int b = 0; b < kOwn; ++b) {
    const float scale = __shfl_sync(~0u, scale_of_lane, b);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int c = thread + i * kThreads;
      if (c >= chunks || row(b) >= p.rows) continue;
      normalise(x[i][b], weight[i], scale);
      const int place = chunk_at<kRows>(row(b), c);
      *reinterpret_cast<uint4*>(t.x + place) = x[i][b];
      if (kCtas > 1) store_async(peer_x + place, x[i][b], peer_rows);
    }
  }
  sync_warps();
  if (kCtas > 1) mbarrier_wait_cluster(shared_address(&t.s.peer_rows), turn);
}

// Where this lane reads its operands in its warp's first block.
template <int kRows>
__device__ __forceinline__ uint32_t operands_at(const Thread& t) {
  const int b = min(t.lane & 7, t.p.rows - 1);  // rows that are not there: those of others, whose products nobody reads
  return shared_address(t.x) + (t.warp * kRows + b) * 128 + ((t.lane / 8) ^ b) * 16;
}
__device__ __forceinline__ void load_operands(uint32_t (&x)[2][4], uint32_t at) {
#pragma unroll
  for (int i = 0; i < 2; ++i) ldmatrix_x4(x[i], at ^ (i * 64));
}

// Activations that all warps share: of a norm, or a tile.
template <int kRows>
struct Staged {
  uint32_t read;
  __device__ __forceinline__ void wait_page() const {}
  __device__ __forceinline__ uint32_t next_place(int block) const { return read + block * (kRows * 128); }
  __device__ __forceinline__ void complete(uint32_t (&)[2][4], uint32_t, int) const {}
  __device__ __forceinline__ void end_page() const {}
};

// Few rows of [B,K] that other CTAs compute, a tile at a time: a thread's chunks of one.
template <int kRows>
struct Tile {
  static constexpr int kChunks = kTileChunks, kColumns = tile_columns(kRows);
  const Thread& t;
  const int columns;  // K
  const int row = static_cast<int>(threadIdx.x) / (kColumns / 8),
            column = static_cast<int>(threadIdx.x) % (kColumns / 8) * 8;
  const bf16* const from;  // the first chunk of the first tile
  uint4 x[kChunks];

  __device__ __forceinline__ Tile(const Thread& thread, const bf16* all, int k)
      : t(thread), columns(k), from(all + row * k + column) {}
  // Chunk i is some rows or columns behind chunk 0.
  static __device__ constexpr int rows_behind(int i) { return i * kThreads * 8 / kColumns; }
  static __device__ constexpr int columns_behind(int i) { return i * kThreads * 8 % kColumns; }
  __device__ __forceinline__ bool has(int tile, int i) const {
    return row + rows_behind(i) < t.p.rows && tile * kColumns + column + columns_behind(i) < columns;
  }
  __device__ __forceinline__ void load(int tile) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      x[i] = make_uint4(0, 0, 0, 0);
      if (has(tile, i)) x[i] = load_16(from + tile * kColumns + rows_behind(i) * columns + columns_behind(i));
    }
  }
  // Once nothing is missing.
  __device__ __forceinline__ void store(int tile, int buffer) {
    const auto misses = [&] {
      bool any = false;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) any |= has(tile, i) && missing(x[i]);
      return any;
    };
    while (__any_sync(~0u, misses())) load(tile);
    uint8_t* to = t.x + buffer * (kChunks * kThreads * 16);
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      *reinterpret_cast<uint4*>(to + chunk_at<kRows>(row + rows_behind(i), (column + columns_behind(i)) / 8)) = x[i];
  }
};

// Many rows: those of a norm, or of [B,K] that other CTAs compute. Of that a warp asks for its own blocks, kXPages
// pages ahead, and needs no other warp. They take turns in the places of a norm's first pages.
template <int kRows>
struct Activations {
  static constexpr uint32_t kBlock = kRows * 128, kPage = kPageBlocks * kBlock;  // bytes
  static_assert(kRows == 8);                                                     // two chunks of a block for each lane
  const Thread& t;
  const int blocks, pages;             // along K; to ask for, of all strips, 0 of a norm
  const bf16* from;                    // this lane's first chunk of a strip
  uint32_t to, read;                   // of page 0: where that goes, and where this lane's operands are
  uint32_t end, at = 0;                // places: behind the last page, and of the next one to read
  int asked = 0, block = 0, used = 0;  // pages, and where the next one to ask for is in its strip

  __device__ __forceinline__ Activations(const Thread& thread, const bf16* all, int k_blocks, int strips)
      : t(thread), blocks(k_blocks), pages(all ? strips * ((k_blocks + kPageBlocks - 1) / kPageBlocks) : 0) {
    const int row = t.lane / 8, chunk = t.lane % 8;
    from = all + (row * blocks + t.warp) * kBlockCols + chunk * 8;
    to = shared_address(t.x) + t.warp * kBlock + chunk_at<kRows>(row, chunk);
    read = operands_at<kRows>(t);
    end = all ? kXPages * kPage : (blocks + kPageBlocks - 1) / kPageBlocks * kPage;
#pragma unroll 1
    for (int i = 0; all && i < kXPages; ++i) ask_next();
  }
  __device__ __forceinline__ void ask(int page, int first) const {
    if (first + t.warp >= blocks) return;
    const uint32_t place = to + static_cast<uint32_t>(page) % kXPages * kPage;
    const bf16* source = from + first * kBlockCols;
    if (t.lane / 8 < t.p.rows) cp_async_16(place, source);
    if (t.lane / 8 + 4 < t.p.rows) cp_async_16((place ^ 64) + 512, source + 4 * blocks * kBlockCols);
  }
  __device__ __forceinline__ int behind(int first) const {
    return first + kPageBlocks < blocks ? first + kPageBlocks : 0;
  }
  __device__ __forceinline__ void ask_next() {
    if (asked < pages) {
      ask(asked++, block);
      block = behind(block);
    }
    cp_async_commit();
  }
  __device__ __forceinline__ void wait_page() const {
    if (pages > 0) cp_async_wait<kXPages - 2>();
  }
  __device__ __forceinline__ uint32_t next_place(int) {
    const uint32_t place = read + at;
    at += kPage;
    if (at == end) at = 0;
    return place;
  }
  // Loads page `used`, which begins with block `first`, again until nothing is missing.
  __device__ __forceinline__ void complete(uint32_t (&x)[2][4], uint32_t place, int first) const {
    constexpr uint32_t kOnes = 0x00010001;
    const auto misses = [&] {
      const uint32_t least = __vimin3_u16x2(__vimin3_u16x2(__vimin3_u16x2(x[0][0], x[0][1], x[0][2]), x[0][3], x[1][0]),
                                            __vimin3_u16x2(x[1][1], x[1][2], x[1][3]), kOnes);
      return __any_sync(~0u, least != kOnes);
    };
    if (pages == 0 || !misses()) return;
    for (;;) {
      cp_async_wait<0>();
      __syncwarp();
      load_operands(x, place);
      if (!misses()) return;
      __syncwarp();
#pragma unroll 1
      for (int page = used, from_block = first; page < asked; ++page, from_block = behind(from_block))
        ask(page, from_block);
      cp_async_commit();
    }
  }
  __device__ __forceinline__ void end_page() {
    if (pages == 0) return;
    ++used;
    ask_next();
  }
};

// ---- Products

// A thread's operands of its warp's block of one page, as ldmatrix brings them: of four steps of 16 columns.
struct Operands {
  uint32_t w[4][4], x[2][4];
  uint32_t place;  // of x
  int slot;        // of the page
};

// sum += the next `blocks` blocks of a strip x the activations. Two sums, so that products need not wait for each
// other. A warp issues little: the next page is loaded before this one is multiplied, its barrier asked about still
// earlier, and nothing is copied.
template <class X>
__device__ __forceinline__ void multiply(Thread& t, float (&sum)[2][4], X& x, int blocks) {
  const uint32_t w =
      shared_address(t.ring) + t.warp * kBlockBytes + t.lane % 16 * 128 + ((t.lane / 16) ^ (t.lane & 7)) * 16;
  bool ready = false;  // the next page is there
  const auto take = [&](Operands& o, int block) {
    if (!ready) mbarrier_wait(shared_address(&t.s.full[t.slot]), t.parity);
    x.wait_page();
    __syncwarp();
    const uint32_t page = w + t.slot * kPageBytes;
    o.slot = t.next_page();
    ready = mbarrier_test(shared_address(&t.s.full[t.slot]), t.parity);
    o.place = x.next_place(block);
    if (block + t.warp >= blocks) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) ldmatrix_x4(o.w[i], page ^ (i * 32));
    load_operands(o.x, o.place);
  };
  const auto use = [&](Operands& o, int block) {
    if (block + t.warp < blocks) {
      x.complete(o.x, o.place, block);
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_16x8x16(sum[i & 1], o.w[i], o.x[i / 2][i % 2 * 2], o.x[i / 2][i % 2 * 2 + 1]);
    }
    t.free_page(o.slot);
    x.end_page();
  };
  Operands a, b;
  take(a, 0);
  for (int block = 0;; block += 2 * kPageBlocks) {
    if (block + kPageBlocks < blocks) take(b, block + kPageBlocks);
    use(a, block);
    if (block + kPageBlocks >= blocks) break;
    if (block + 2 * kPageBlocks < blocks) take(a, block + 2 * kPageBlocks);
    use(b, block + kPageBlocks);
    if (block + 2 * kPageBlocks >= blocks) break;
  }
}

// The hidden state that a layer begins with.
__device__ __forceinline__ const bf16* input_of(const Lane& t, int layer) {
  return layer == 0 ? t.p.h : of_turn(t.p.out, t.turn - 1, t.p.width);
}

// What the end of a strip needs from memory, asked for before its sums are there. Of rows 2 quad and 2 quad + 1 of the
// batch (j), and rows group and group + 8 of the strip.
struct Addends {
  float add[2][2];           // [j][half]: what is in h; or [.][half]: the bias
  float cosine[2], sine[2];  // [j]
  int slot[2];               // [j]
};
__device__ __forceinline__ void load_addends(const Lane& t, int layer, int phase, int strip, Addends& o) {
  const Params& p = t.p;
  const int row = strip * kStripRows + t.group;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int b = 2 * t.quad + j;
    if (b >= p.rows) continue;
    if (phase == kOutput || phase == kDown) {
      const bf16* h = phase == kOutput ? input_of(t, layer) : of_turn(p.middle, t.turn, p.width);
      const bool given = phase == kOutput && layer == 0;
      o.add[j][0] = wait_bf16(h + b * p.width + row, given);
      o.add[j][1] = wait_bf16(h + b * p.width + row + 8, given);
    } else if (phase == kQkv) {
      const bf16* bias = t.s.views[layer & 1].bias;
      o.add[j][0] = bias ? __bfloat162float(bias[row]) : 0;
      o.add[j][1] = bias ? __bfloat162float(bias[row + 8]) : 0;
      const float* turn = p.cos_sin + b * p.head_dim + ((row - t.group) & (p.head_dim - 1)) / 2 + t.group;
      o.cosine[j] = turn[0];
      o.sine[j] = turn[p.head_dim / 2];
      o.slot[j] = p.slots[b];
    }
  }
}

// v[j] and v[2 + j]: rows group and group + 8 of the strip for row 2 quad + j of the batch.
__device__ __forceinline__ void store_strip(const Lane& t, int layer, int phase, int strip, const float (&v)[4],
                                            const Addends& o) {
  const Params& p = t.p;
  const int row = strip * kStripRows + t.group;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int b = 2 * t.quad + j;
    if (b >= p.rows) continue;
    float lo = v[j], hi = v[2 + j];
    if (phase == kQkv) {
      const int head = row >> p.head_shift, place = row & (p.head_dim - 1);
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

// A warp's sums of a strip go to the warp that ends it.
__device__ __forceinline__ void hand_over(Thread& t, float (&sum)[2][4]) {
  const int ender = t.strips % kEnders;
  mbarrier_wait(shared_address(&t.s.sums_empty[ender]), (t.strips / kEnders & 1) ^ 1);
  __syncwarp();
  t.s.sums[ender][t.warp][t.lane] =
      make_float4(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1], sum[0][2] + sum[1][2], sum[0][3] + sum[1][3]);
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[0][j] = sum[1][j] = 0;
  mbarrier_arrive(shared_address(&t.s.sums_full[ender]));
  ++t.strips;
}

// Adds the sums of the multiplying warps in their order, and stores: every second strip of all phases. One warp.
__device__ __forceinline__ void end_strips(const Params& p, Shared& s, int ender) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  pdl_wait();
  Lane t{p, s, lane, lane / 4, lane % 4, load_turn(p)};
  for (int i = 0; i <= 4 * p.depth; ++i) {
    const int layer = i / 4, phase = i < 4 * p.depth ? i % 4 : kHead;
    if (phase == kQkv) mbarrier_wait(shared_address(&s.view_full[layer & 1]), layer >> 1 & 1);
    if (phase == kGateUp) {  // whose values say that what was read and what was old is cleared
      mbarrier_wait(shared_address(&s.cleared), layer & 1);
      mbarrier_arrive(shared_address(&s.view_empty[layer & 1]));
    }
    const Share share(p, layer, phase);
    for (int strip = 0; strip < share.count; ++strip, ++t.strips) {
      if (t.strips % kEnders != ender) continue;
      Addends addends = {};
      load_addends(t, layer, phase, share.strip(strip), addends);
      mbarrier_wait(shared_address(&s.sums_full[ender]), t.strips / kEnders & 1);
      __syncwarp();
      float v[4] = {};
#pragma unroll
      for (int j = 0; j < kWarps; ++j) {
        const float4 part = s.sums[ender][j][lane];
        v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
      }
      mbarrier_arrive(shared_address(&s.sums_empty[ender]));
      store_strip(t, layer, phase, share.strip(strip), v, addends);
    }
    if (phase == kDown) ++t.turn;
  }
}

// The products of one phase.
template <int kRows, int kChunks>
__device__ __forceinline__ void products(Thread& t, int layer, int phase) {
  const Params& p = t.p;
  const Share share(p, layer, phase);
  const bool normed = phase != kOutput && phase != kDown;
  const auto stage = [&] {
    const LayerView& view = t.s.views[layer & 1];
    const bf16* h = phase == kGateUp ? of_turn(p.middle, t.turn, p.width) : input_of(t, layer);
    stage_norm<kRows, kChunks>(t, h, layer == 0 && phase == kQkv,
                               phase == kQkv      ? view.attention_norm
                               : phase == kGateUp ? view.mlp_norm
                                                  : p.norm);
    if (t.warp == 0 && t.lane == 0) {
      if (phase == kQkv) mbarrier_arrive(shared_address(&t.s.arrived));
      atomicExch(&t.s.in_flight, kInFlight);
    }
  };
  float sum[2][4] = {};
  if constexpr (are_many(kRows)) {
    if (normed) stage();
    const bf16* brought = phase == kOutput ? of_turn(p.attended, t.turn, p.q_width)
                          : phase == kDown ? of_turn(p.activated, t.turn, p.ffn)
                                           : nullptr;
    Activations<kRows> x(t, brought, share.blocks, share.count);
    for (int i = 0; i < share.count; ++i) {
      multiply(t, sum, x, share.blocks);
      hand_over(t, sum);
    }
  } else {
    using TileOf = Tile<kRows>;
    constexpr int kTileBlocks = TileOf::kColumns / kBlockCols;
    const int tiles = normed ? 1 : (share.blocks + kTileBlocks - 1) / kTileBlocks, total = share.count * tiles;
    const bf16* brought = phase == kDown ? of_turn(p.activated, t.turn, p.ffn) : of_turn(p.attended, t.turn, p.q_width);
    TileOf tile(t, brought, share.blocks * kBlockCols);
    if (normed) {
      stage();
    } else if (total > 0) {
      tile.load(0);
      sync_warps();  // other warps may still read what is there
      tile.store(0, 0);
      sync_warps();
    }
    const uint32_t read = operands_at<kRows>(t);
    for (int i = 0, now = 0; i < total; ++i) {
      const int next = now + 1 < tiles ? now + 1 : 0;
      const bool stages = tiles > 1 && i + 1 < total;
      if (stages) tile.load(next);
      const bool second = !normed && tiles > 1 && (i & 1) != 0;
      const Staged<kRows> x{read + (second ? TileOf::kChunks * kThreads * 16 : 0)};
      multiply(t, sum, x, normed ? share.blocks : min(kTileBlocks, share.blocks - now * kTileBlocks));
      if (stages) {
        tile.store(next, (i + 1) & 1);
        sync_warps();
      }
      if (next == 0) hand_over(t, sum);
      now = next;
    }
  }
  if (norm_ctas(kRows) > 1 && !normed && t.lane == 0)
    mbarrier_arrive_read(cluster_address(shared_address(&t.s.peer_free), cluster_rank() ^ 1), 1);
}

}  // namespace saccade::cuda::persistent
