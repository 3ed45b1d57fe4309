// Full attention inside long segments for heads of 80 values, Hopper: 4*P*S*H*80 flops for P rows in segments of S.
//
// group_rows turns q and k and brings the rows, in place, into the order that wgmma reads without swizzle: eight rows
// of a segment (the last ones of it: fewer) become [3*H][10 chunks of 16 bytes][rows], so that a tile of a head is one
// contiguous piece of 1280 bytes per eight rows, which plain bulk copies bring. 12*P*H*80 bytes.
//
// segment_flash: persistent, one CTA per SM; a work item is 128 queries of a head. Two warpgroups have 64 queries each,
// kCopyWarps warps copy: keys and values in tiles of 128 rows, through rings of kStages tiles. A warpgroup issues
// the scores of the next tile (m64n128k16, K = 5*16) before the softmax of the present one, whose product with the
// values (m64n80k16, probabilities in registers, rounded to BF16) runs meanwhile. Scores, softmax and sums in float.
// A row's result depends on its segment alone: tiles start where the segment does, and rows past its end are zeros.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/segment_attention.h"
#include "kernels/cuda/segment_wgmma.cuh"

namespace saccade::cuda {
namespace {

constexpr int kDim = 80, kChunks = kDim / 8;
constexpr int kGroup = 8;                       // rows
constexpr int kGroupBytes = kGroup * kDim * 2;  // of a head
constexpr int kQueries = 64, kKeys = 128;       // of a warpgroup; of a tile
constexpr int kWarpgroups = 2;                  // that compute
constexpr int kItemRows = kWarpgroups * kQueries;
constexpr int kCopyWarps = 4;
constexpr int kThreads = (kWarpgroups * 4 + kCopyWarps) * 32;
constexpr int kStages = 3;
constexpr int kTileBytes = kKeys * kDim * 2;
static_assert(kItemRows == kKeys);  // a q tile is copied as a k tile is

struct Args {
  bf16* qkv;
  const float* cos_sin;  // null: nothing to turn
  const int* cu_seqlens;
  int heads, segments, tiles;  // the last: of queries in the longest segment
  float scale_log2;
  bf16* y;
};

// ---- group_rows

constexpr int kGroupThreads = 320;  // 8 rows, 5 pairs of chunks, 8 heads at a time
constexpr int row_pitch(int heads) { return 3 * heads * kDim * 2 + 16; }  // rows are in different banks
constexpr int group_shared(int heads) { return kGroup * row_pitch(heads) + 16; }

// Grid: (groups of the longest segment, segments).
__global__ void __launch_bounds__(kGroupThreads) group_rows(const Args args) {
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_wait();
  pdl_launch();
  const int begin = args.cu_seqlens[blockIdx.y], length = args.cu_seqlens[blockIdx.y + 1] - begin;
  const int first = blockIdx.x * kGroup, rows = min(kGroup, length - first);
  if (rows <= 0 || length <= kWindowRows) return;
  const int slots = 3 * args.heads, pitch = row_pitch(args.heads), row_bytes = slots * kDim * 2;
  bf16* const group = args.qkv + int64_t{begin + first} * slots * kDim;
  const uint32_t barrier = shared_address(shared + kGroup * pitch);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_barrier_init();
    mbarrier_expect(barrier, rows * row_bytes);
    for (int r = 0; r < rows; ++r)
      bulk_copy(shared_address(shared + r * pitch), group + r * slots * kDim, row_bytes, barrier);
  }
  const int row = threadIdx.x % kGroup, chunk = threadIdx.x / kGroup % (kChunks / 2);
  float4 cos[2], sin[2];
  if (args.cos_sin && row < rows) {
    const auto* turn = reinterpret_cast<const float4*>(args.cos_sin + int64_t{begin + first + row} * kDim) + 2 * chunk;
    cos[0] = turn[0], cos[1] = turn[1], sin[0] = turn[kDim / 8], sin[1] = turn[kDim / 8 + 1];
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  if (row >= rows) return;

  auto* to = reinterpret_cast<uint4*>(group) + chunk * rows + row;
  for (int slot = threadIdx.x / (kGroup * kChunks / 2); slot < slots; slot += kGroupThreads / (kGroup * kChunks / 2)) {
    const auto* from = reinterpret_cast<const uint4*>(shared + row * pitch) + slot * kChunks + chunk;
    uint4 a = from[0], b = from[kChunks / 2];
    if (args.cos_sin && slot < 2 * args.heads) {
      turn_eight(a, b, cos, sin);
    }
    to[slot * kChunks * rows] = a;
    to[(slot * kChunks + kChunks / 2) * rows] = b;
  }
}

// ---- segment_flash

struct Shared {
  alignas(128) unsigned char q[kTileBytes];
  alignas(128) unsigned char k[kStages][kTileBytes];
  alignas(128) unsigned char v[kStages][kTileBytes];
  uint64_t q_full, q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

// A place in a ring and the parity of its barriers' present phase.
struct Place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

struct Item {
  int segment, head, first, begin, length;
  __device__ bool empty() const { return first >= length || length <= kWindowRows; }
  __device__ int key_tiles() const { return (length + kKeys - 1) / kKeys; }
};
__device__ __forceinline__ Item item_of(const Args& args, int index) {
  Item item;
  item.first = index % args.tiles * kItemRows;
  item.head = index / args.tiles % args.heads;
  item.segment = index / args.tiles / args.heads;
  item.begin = args.cu_seqlens[item.segment];
  item.length = args.cu_seqlens[item.segment + 1] - item.begin;
  return item;
}

// By each of the copying warps, for its share of the groups: rows row .. row + 127 of the segment, of q (0), k (1) or
// v (2). Rows of v past the end become zeros; those of q and k stay as they are, since each matters to its own row or
// column of the scores only.
__device__ void copy_tile(const Args& args, const Item& item, int which, int row, unsigned char* tile,
                          uint64_t* barrier, int warp, int lane) {
  constexpr int kShare = kKeys / kCopyWarps, kShareBytes = kShare * kDim * 2;
  row += warp * kShare;
  tile += warp * kShareBytes;
  const int rows = min(kShare, item.length - row), slots = 3 * args.heads, slot = which * args.heads + item.head;
  if (which == 2 && rows < kShare) {
    for (int i = lane; i < kShareBytes / 16; i += 32) {
      const int zero_row = i / (kGroup * kChunks) * kGroup + i % kGroup;
      if (zero_row >= rows) reinterpret_cast<uint4*>(tile)[i] = {0, 0, 0, 0};
    }
    fence_proxy_async_shared();
    __syncwarp();
  }
  const uint32_t full = shared_address(barrier);
  if (lane == 0) mbarrier_expect(full, max(rows, 0) * kDim * 2);
  __syncwarp();
  const int in_group = min(kGroup, rows - lane * kGroup);
  if (lane >= kShare / kGroup || in_group <= 0) return;
  const uint32_t to = shared_address(tile) + lane * kGroupBytes;
  const bf16* from = args.qkv + (int64_t{item.begin + row + lane * kGroup} * slots + slot * in_group) * kDim;
  if (in_group == kGroup) {
    bulk_copy(to, from, kGroupBytes, full);
  } else {
#pragma unroll 1
    for (int c = 0; c < kChunks; ++c) bulk_copy(to + c * 128, from + c * in_group * 8, in_group * 16, full);
  }
}

// The order of key tiles: the last one, which may be partial, then the others.
__device__ __forceinline__ int key_row(const Item& item, int tile) {
  return (tile == 0 ? item.key_tiles() - 1 : tile - 1) * kKeys;
}

__device__ void produce(const Args& args, Shared& s, int items, int warp, int lane) {
  Place place;
  uint32_t q_parity = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = item_of(args, index);
    if (item.empty()) continue;
    for (int tile = 0; tile < item.key_tiles(); ++tile, place.advance()) {
      mbarrier_wait(shared_address(&s.k_empty[place.stage]), place.parity ^ 1);
      copy_tile(args, item, 1, key_row(item, tile), s.k[place.stage], &s.k_full[place.stage], warp, lane);
      if (tile == 0) {
        mbarrier_wait(shared_address(&s.q_empty), q_parity ^ 1);
        copy_tile(args, item, 0, item.first, s.q, &s.q_full, warp, lane);
        q_parity ^= 1;
      }
      mbarrier_wait(shared_address(&s.v_empty[place.stage]), place.parity ^ 1);
      copy_tile(args, item, 2, key_row(item, tile), s.v[place.stage], &s.v_full[place.stage], warp, lane);
    }
  }
}

// What a thread has of its warpgroup's 64 queries: rows lane / 4 and lane / 4 + 8 of the warp's 16.
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {};

  // Turns scores into probabilities relative to the maximum so far; `shrink` brings earlier ones to it.
  __device__ __forceinline__ void update(float (&x)[64], float scale_log2, float (&shrink)[2]) {
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = most[r];
#pragma unroll
      for (int i = 0; i < 64; i += 4) top = fmaxf(top, fmaxf(x[i + 2 * r], x[i + 2 * r + 1]));
      top = quad_max(top);
      shrink[r] = exp2_approx((most[r] - top) * scale_log2);
      most[r] = top;
      base[r] = top * scale_log2;
      total[r] *= shrink[r];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      x[i] = exp2_approx(fmaf(x[i], scale_log2, -base[i / 2 % 2]));
      total[i / 2 % 2] += x[i];
    }
  }
};

__device__ void consume(const Args& args, Shared& s, int items, int warpgroup) {
  const int lane = threadIdx.x % 32, warp_row = warpgroup * kQueries + threadIdx.x / 32 % 4 * 16;
  const uint64_t q_matrix = matrix(shared_address(s.q) + warpgroup * (kTileBytes / kWarpgroups), 128, kGroupBytes);
  float x[64], sums[40], shrink[2];
  uint32_t p[32];
  const auto score = [&](int stage) {
    const uint64_t k_matrix = matrix(shared_address(s.k[stage]), 128, kGroupBytes);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) wgmma_scores(x, q_matrix + step * 16, k_matrix + step * 16, step > 0);
    wgmma_commit();
  };
  const auto weigh = [&](int stage) {
    const uint64_t v_matrix = matrix(shared_address(s.v[stage]), kGroupBytes, 128);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      wgmma_values(sums, p + 4 * step, v_matrix + step * (2 * kGroupBytes / 16));
    wgmma_commit();
  };
  const auto round = [&] {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
  };

  Place place;
  uint32_t q_parity = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = item_of(args, index);
    if (item.empty()) continue;
    const int tiles = item.key_tiles();
    Softmax softmax;

    mbarrier_wait(shared_address(&s.q_full), q_parity);
    mbarrier_wait(shared_address(&s.k_full[place.stage]), place.parity);
    q_parity ^= 1;
    pin(x);
    wgmma_fence();
    score(place.stage);
    wgmma_wait<0>();
    pin(x);
    arrive(&s.k_empty[place.stage]);
    if (tiles == 1) arrive(&s.q_empty);
    const int keys = item.length - key_row(item, 0);
#pragma unroll
    for (int i = 0; i < 64; ++i)
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= keys) x[i] = -INFINITY;
    softmax.update(x, args.scale_log2, shrink);
    round();
#pragma unroll
    for (int i = 0; i < 40; ++i) sums[i] = 0;

    for (int tile = 1; tile < tiles; ++tile) {
      const Place last = place;
      place.advance();
      mbarrier_wait(shared_address(&s.k_full[place.stage]), place.parity);
      pin(x);
      pin(sums);
      wgmma_fence();
      score(place.stage);
      mbarrier_wait(shared_address(&s.v_full[last.stage]), last.parity);
      weigh(last.stage);
      wgmma_wait<1>();
      pin(x);
      arrive(&s.k_empty[place.stage]);
      if (tile + 1 == tiles) arrive(&s.q_empty);
      softmax.update(x, args.scale_log2, shrink);
      // Never true, but the compiler cannot know: it would wait for the product before, not after, the exponentials.
      if (softmax.total[0] + softmax.total[1] < 0) __trap();
      wgmma_wait<0>();
      pin(sums);
      arrive(&s.v_empty[last.stage]);
      round();
      if (__any_sync(0xffffffff, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 40; ++i) sums[i] *= shrink[i / 2 % 2];
      }
    }
    mbarrier_wait(shared_address(&s.v_full[place.stage]), place.parity);
    pin(sums);
    wgmma_fence();
    weigh(place.stage);
    wgmma_wait<0>();
    pin(sums);
    arrive(&s.v_empty[place.stage]);
    place.advance();

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = item.first + warp_row + lane / 4 + r * 8;
      bf16* const to = args.y + (int64_t{item.begin + row} * args.heads + item.head) * kDim;
      store_row(sums, r, quad_sum(softmax.total[r]), to, row < item.length);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) segment_flash(const Args args) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    mbarrier_init(shared_address(&s.q_full), kCopyWarps);
    mbarrier_init(shared_address(&s.q_empty), 4 * kWarpgroups);
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(shared_address(&s.k_full[i]), kCopyWarps);
      mbarrier_init(shared_address(&s.v_full[i]), kCopyWarps);
      mbarrier_init(shared_address(&s.k_empty[i]), 4 * kWarpgroups);
      mbarrier_init(shared_address(&s.v_empty[i]), 4 * kWarpgroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  pdl_wait();
  pdl_launch();
  const int items = args.segments * args.heads * args.tiles;
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == kWarpgroups)
    produce(args, s, items, threadIdx.x / 32 % 4, threadIdx.x % 32);
  else
    consume(args, s, items, warpgroup);
}

}  // namespace

bool segment_flash_fits(const Tensor& qkv) {
  return qkv.dim(3) == kDim && group_shared(static_cast<int>(qkv.dim(2))) <= 227 * 1024;
}

void segment_attention_flash(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                             int64_t longest, float scale, const Tensor& y) {
  Args args = {};
  args.qkv = static_cast<bf16*>(qkv.data);
  args.cos_sin = static_cast<const float*>(cos_sin.data);
  args.cu_seqlens = cu_seqlens.as<int32_t>();
  args.heads = static_cast<int>(qkv.dim(2));
  args.segments = static_cast<int>(cu_seqlens.dim(0)) - 1;
  args.tiles = static_cast<int>((longest + kItemRows - 1) / kItemRows);
  args.scale_log2 = scale * kLog2E;
  args.y = static_cast<bf16*>(y.data);

  const int shared = group_shared(args.heads);
  check(cudaFuncSetAttribute(group_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "segment_attention");
  launch_pdl("segment_attention: rope", group_rows,
             dim3(static_cast<unsigned>((longest + kGroup - 1) / kGroup), args.segments), dim3(kGroupThreads), shared,
             stream, args);
  check(cudaFuncSetAttribute(segment_flash, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "segment_attention");
  launch_pdl("segment_attention", segment_flash, dim3(sm_count()), dim3(kThreads), sizeof(Shared), stream, args);
}

}  // namespace saccade::cuda
