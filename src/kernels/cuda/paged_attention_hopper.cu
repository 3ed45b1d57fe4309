// paged_attention for Hopper, heads of 128 values: wgmma fed by bulk copies of pages.
//
// CTA: two warpgroups of 64 rows each, which share keys (paged_attention.cuh), and a warp that copies keys and values
// of 64 tokens (32 KiB) at a time into a ring of kStages. Launch: one CTA of 384 threads for each SM, or fewer; each
// goes through its share of all pairs of row tiles, longest first, and the copies run ahead into the next pair.
// Operations: 4 * 128 for each visible (row, key); bound by the tensor cores, with 128 rows * 64 keys for every 32 KiB
// from L2. A warpgroup has S of the next tile in flight while it does the softmax of this one, then adds P V, in turns
// with the other warpgroup:
//   softmax of S(i) | await turn | O += P V(i) started | S(i+2) = Q K(i+2) started | end turn
// (FlashAttention-3, arXiv 2407.08608, orders these otherwise; the 64-key tiles leave registers for two S.)
// Numerics: products in float; P is rounded to bf16 relative to the row's reference, its sum is of unrounded weights;
// O / sum is rounded once.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/paged_attention.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace saccade::cuda {
namespace {

constexpr int kDh = 128;
constexpr int kBlock = kKvPageTokens * kBlockCols * 2;  // bytes of 64 values of 64 tokens
constexpr int kTileBytes = 2 * kBlock;                  // keys or values of a tile
constexpr int kStages = 6;
constexpr int kGroups = 2;
constexpr int kThreads = (kGroups + 1) * 128;
constexpr uint32_t kBarriers = kStages * 2 * kTileBytes;  // where they stand in shared memory
constexpr size_t kShared = 1024 + kBarriers + kStages * 16;

// ---- wgmma: D [64,N] of a warpgroup += A [64,16] (registers) B [16,N] (shared memory, 128-byte swizzle)

// B is [N rows][64 values] (K-major): groups of 8 rows are 1024 bytes apart.
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t address) {
  return uint64_t{address >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
// B is [16 rows][N values] (N-major): 64 values further is the next block, 8 rows further 1024 bytes.
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t address) {
  return uint64_t{address >> 4} | uint64_t{kBlock >> 4} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// The compiler must not move uses of registers that wgmma writes across this.
template <int kBlocks>
__device__ __forceinline__ void pin(float (&d)[kBlocks][4]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
}

#define SACCADE_4(c, d, n) c(d[n][0]), c(d[n][1]), c(d[n][2]), c(d[n][3])
#define SACCADE_16(c, d, n) SACCADE_4(c, d, n), SACCADE_4(c, d, n + 1), SACCADE_4(c, d, n + 2), SACCADE_4(c, d, n + 3)
#define SACCADE_WGMMA_64                                                                                             \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16," \
  "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, "

// D = A B, and D += A B.
__device__ __forceinline__ void wgmma_rows_first(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(SACCADE_WGMMA_64 "0, 1, 1, 0;"
               : SACCADE_16("=f", d, 0), SACCADE_16("=f", d, 4)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
               : "memory");
}
__device__ __forceinline__ void wgmma_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(SACCADE_WGMMA_64 "1, 1, 1, 0;"
               : SACCADE_16("+f", d, 0), SACCADE_16("+f", d, 4)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
               : "memory");
}
__device__ __forceinline__ void wgmma_columns(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"
      "%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
      : SACCADE_16("+f", d, 0), SACCADE_16("+f", d, 4), SACCADE_16("+f", d, 8), SACCADE_16("+f", d, 12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
      : "memory");
}

// ---- kernel

// How row tiles go to the warpgroups of CTAs, longest first.
enum class Deal {
  kSingle,    // one for each CTA: all run at once
  kFolded,    // a long one with a short one: all run at once
  kAdjacent,  // with the next: as few copies as can be
};

struct Schedule {
  Deal deal;
  int items;        // rounds of `streams`, some of them empty where sequences differ in length
  Divisor streams;  // sequences * key heads
};

// The work of a CTA: of all (row tiles for two warpgroups, sequence, key head), in this order, one of every gridDim.x.
// It takes them from either end in turn, and from another place every second time, so that CTAs have about equal
// shares.
struct Items {
  Schedule schedule;
  TiledRows rows = {};
  int tile[kGroups] = {};  // < 0: none; the first is the longest
  int round = 0, place = static_cast<int>(blockIdx.x);

  __device__ int tile_of(int warpgroup) const { return warpgroup == 0 ? tile[0] : tile[1]; }
  __device__ __forceinline__ bool next(const PagedAttention& a) {
    const int ctas = static_cast<int>(gridDim.x);
    while (true) {
      const int item = round * ctas + (round % 2 ? ctas - 1 - place : place);
      if (item >= schedule.items) return false;
      if (round++ % 2) place = (place + kTurn) % ctas;
      const int j = schedule.streams.divide(item), stream = item - j * schedule.streams.value;
      const int sequence = a.kv_heads.divide(stream);
      rows = TiledRows(a, sequence, stream - sequence * a.kv_heads.value);
      const int last = rows.tiles() - 1;
      tile[0] = schedule.deal == Deal::kAdjacent ? last - 2 * j : last - j;
      tile[1] = schedule.deal == Deal::kAdjacent ? tile[0] - 1 : schedule.deal == Deal::kFolded && j < tile[0] ? j : -1;
      if (tile[0] >= (schedule.deal == Deal::kFolded ? j : 0)) return true;
    }
  }

 private:
  static constexpr int kTurn = 37;  // has no factor in common with the number of SMs
};

// kStages times keys and values; barriers of each stage: `full`, the copies have come; `empty`, all warps of both
// warpgroups have read it.
struct Ring {
  uint32_t base;
  int stage = 0;
  uint32_t parity = 0;

  __device__ uint32_t keys() const { return base + static_cast<uint32_t>(stage) * 2 * kTileBytes; }
  __device__ uint32_t values() const { return keys() + kTileBytes; }
  __device__ uint32_t full() const { return base + kBarriers + 16 * static_cast<uint32_t>(stage); }
  __device__ uint32_t empty() const { return full() + 8; }
  __device__ uint32_t empty_before(int back) const {
    return base + kBarriers + 16 * static_cast<uint32_t>(stage < back ? stage + kStages - back : stage - back) + 8;
  }
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The copying warp.
__device__ __forceinline__ void copy_tiles(const PagedAttention& a, Items items, Ring ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  while (items.next(a)) {
    const TiledRows& rows = items.rows;
    const int tiles = rows.key_tiles(items.tile[0]), cached = rows.cached();
    const int* pages = a.page_table + static_cast<int64_t>(rows.sequence) * a.max_pages;
    int page_of_lane = 0;
    for (int i = 0; i < tiles; ++i, ring.next()) {
      if (i % 32 == 0) page_of_lane = i + lane < tiles ? pages[i + lane] : 0;
      const int64_t page = __shfl_sync(~0u, page_of_lane, i % 32);
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      const bf16* keys = a.kv + (page * 2 * a.kv_heads.value + rows.kv_head) * (kTileBytes / 2);
      const bf16* values = keys + static_cast<int64_t>(a.kv_heads.value) * (kTileBytes / 2);
      const int valid = min(cached - i * kKvPageTokens, kKvPageTokens);
      // Weights of keys that do not exist are 0, but what the page holds there may be infinite: it must be 0 as well.
      for (uint32_t at = static_cast<uint32_t>(valid * 128 + lane * 16); at < kBlock; at += 32 * 16)
        for (uint32_t block = 0; block < 2; ++block)
          asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(ring.values() + block * kBlock + at), "r"(0)
                       : "memory");
      if (valid < kKvPageTokens) fence_proxy_async();
      __syncwarp();
      if (lane == 0) {
        const uint32_t bytes = static_cast<uint32_t>(valid) * 128;
        mbarrier_expect(ring.full(), kTileBytes + 2 * bytes);
        bulk_copy(ring.keys(), keys, kTileBytes, ring.full());
        bulk_copy(ring.values(), values, bytes, ring.full());
        bulk_copy(ring.values() + kBlock, values + kBlock / 2, bytes, ring.full());
      }
      __syncwarp();
    }
  }
}

// Warpgroups take turns in starting products: one does its softmax while the tensor cores work for the other.
__device__ __forceinline__ void await_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ __forceinline__ void end_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

__device__ __forceinline__ void start_scores(const uint32_t (&q)[kDh / 16][4], uint32_t keys, float (&s)[8][4]) {
  wgmma_fence();
  wgmma_rows_first(s, q[0], rows_descriptor(keys));
#pragma unroll
  for (uint32_t k = 1; k < kDh / 16; ++k) wgmma_rows(s, q[k], rows_descriptor(keys + k / 4 * kBlock + k % 4 * 32));
}

// Sums of one row tile over `tiles` tiles of keys, of which the first `whole` need no mask. Takes the first `turns`
// with the other warpgroup.
__device__ __forceinline__ void attend(const uint32_t (&q)[kDh / 16][4], const int (&positions)[2], int tiles,
                                       int whole, float scale, int group, int turns, Ring& ring, OnlineSoftmax& softmax,
                                       float (&o)[kDh / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float s0[8][4], s1[8][4];
  uint32_t p[4][4];
  pin(o);
  mbarrier_wait(ring.full(), ring.parity);
  start_scores(q, ring.keys(), s0);
  wgmma_commit();
  wgmma_commit();                           // stands for the product of weights and values before the first
  const int last_turn = turns - 1 - group;  // that ends with a turn of the other
  if (group == 1 && turns > 0) end_turn(group);

  // Groups in flight at the wait: S(i), P V(i-1), S(i+1); P V(i-2) ends before S(i).
  const auto step = [&]<bool kLast>(int i, float(&s)[8][4], float(&next)[8][4]) __attribute__((always_inline)) {
    const uint32_t values = ring.values();
    ring.next();
    if constexpr (!kLast) {
      mbarrier_wait(ring.full(), ring.parity);
      start_scores(q, ring.keys(), next);
      wgmma_commit();
    }
    if (i > 0 && i - 1 <= last_turn) end_turn(group);
    wgmma_wait<kLast ? 1 : 2>();
    pin(s);
    if (i > 1 && lane == 0) mbarrier_arrive(ring.empty_before(3));
    if (i >= whole) {
      const int last[2] = {positions[0] - i * kKvPageTokens, positions[1] - i * kKvPageTokens};
      mask_after(s, last, lane % 4 * 2);
    }
    float factor[2];
    const bool raised = softmax.step(s, scale, factor);
    if (raised) {
      wgmma_wait<kLast ? 0 : 1>();
      pin(o);
      multiply_rows(o, factor);
    } else {
      wgmma_wait<kLast ? 0 : 1, 1>();
    }
    pin(o);
#pragma unroll
    for (int k = 0; k < 4; ++k) pack_weights(s, k, p[k]);
    if (i < turns) await_turn(group);
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) wgmma_columns(o, p[k], columns_descriptor(values + k * 16 * 128));
    wgmma_commit();
  };
  int i = 0;
  for (; i + 2 < tiles; i += 2) {
    step.operator()<false>(i, s0, s1);
    step.operator()<false>(i + 1, s1, s0);
  }
  if (i + 1 < tiles) {
    step.operator()<false>(i, s0, s1);
    step.operator()<true>(i + 1, s1, s0);
  } else {
    step.operator()<true>(i, s0, s1);
  }
  if (tiles - 1 <= last_turn) end_turn(group);
  wgmma_wait<0>();
  pin(o);
  if (lane == 0) {
    if (tiles > 1) mbarrier_arrive(ring.empty_before(2));
    mbarrier_arrive(ring.empty_before(1));
  }
}

// A warpgroup: its row tiles of all items.
__device__ __forceinline__ void attend_items(const PagedAttention& a, Items items, int group, Ring ring) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int place = thread / 32 * 16 + thread % 32 / 4;  // of a thread's first row in a tile
  uint32_t q[kDh / 16][4];
  const auto next_item = [&]() __attribute__((always_inline)) {
    const bool more = items.next(a);
    if (more && items.tile_of(group) >= 0)
      load_queries<kDh>(a, items.rows, items.tile_of(group) * kTileRows + place, q);
    return more;
  };
  for (bool more = next_item(); more;) {
    const TiledRows rows = items.rows;
    const int tile = items.tile_of(group), row = tile * kTileRows + place;
    const int all = rows.key_tiles(items.tile[0]), tiles = tile < 0 ? 0 : rows.key_tiles(tile);
    const int turns = items.tile[1] < 0 ? 0 : rows.key_tiles(items.tile[1]);
    OnlineSoftmax softmax;
    float o[kDh / 8][4] = {};
    if (tiles > 0) {
      const int positions[2] = {rows.position(row), rows.position(row + 8)};
      arrange_queries<kDh>(q);
      attend(q, positions, tiles, rows.whole_key_tiles(tile), a.scale, group, turns, ring, softmax, o);
    }
    more = next_item();  // queries come while rows are stored
    if (tiles > 0) store_rows<kDh>(a, rows, row, softmax, o);
    for (int i = tiles; i < all; ++i, ring.next()) {  // the other warpgroup goes on
      mbarrier_wait(ring.full(), ring.parity);
      if (thread % 32 == 0) mbarrier_arrive(ring.empty());
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) paged_attention_kernel(const PagedAttention a, const Schedule schedule) {
  extern __shared__ uint8_t dynamic[];
  pdl_launch();
  Ring ring{(shared_address(dynamic) + 1023) & ~1023u};
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) {
      mbarrier_init(ring.base + kBarriers + 16 * i, 1);
      mbarrier_init(ring.base + kBarriers + 16 * i + 8, kGroups * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();
  pdl_wait();

  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // uniform, for the compiler too
  if (group < kGroups) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    attend_items(a, Items{schedule}, group, ring);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x / 32 == kGroups * 4) copy_tiles(a, Items{schedule}, ring);
  }
}

}  // namespace

void paged_attention_hopper(Stream stream, const PagedAttention& a, int64_t longest_q) {
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(paged_attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
          "paged_attention: shared memory");
    return true;
  }();
  (void)allowed;
  const int64_t streams = int64_t{a.sequences} * a.kv_heads.value;
  const int64_t tiles = (longest_q * a.group.value + kTileRows - 1) / kTileRows;
  const Deal deal = streams * tiles <= sm_count()       ? Deal::kSingle
                    : streams * tiles <= 2 * sm_count() ? Deal::kFolded
                                                        : Deal::kAdjacent;
  const int64_t items = streams * (deal == Deal::kSingle ? tiles : (tiles + 1) / 2);
  const Schedule schedule{deal, static_cast<int>(items), Divisor(streams)};
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(items, sm_count())));
  launch_pdl("paged_attention", paged_attention_kernel, grid, dim3(kThreads), kShared, stream, a, schedule);
}

}  // namespace saccade::cuda
