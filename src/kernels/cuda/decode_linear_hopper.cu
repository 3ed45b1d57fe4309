// Matmul of up to 64 rows with weights in strips, for Hopper: y [B,N] = x [B,K] W^T with W as the operand of 64 rows of
// wgmma and x as the one of 16, 32 or 64 columns.
//
// One CTA an SM, of equal bytes: a range of (group of 128 rows, block of K) units of a split matmul, or of whole strips
// where an epilogue needs complete sums. A warp streams weights by bulk copies through a ring of 8 KiB slots (64 rows x
// 64 columns); it starts before the preceding kernel has ended, since weights depend on nothing. Another warp brings x,
// which lives in the L2 cache, and is the one that waits. Two warpgroups multiply, taking turns at the slots. A CTA
// takes half of an SM, so that the next matmul's ring fills while this one drains.
// 2 N K bytes of weights; bound by memory (B = 64: 64 flops a byte). Sums in float in an order that depends on N, K and
// the number of SMs alone.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_chain.cuh"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::chain {
namespace {

constexpr int kTileStrips = 4;  // 64 rows: what wgmma takes
constexpr int kSlotBytes = kTileStrips * kBlockBytes;
constexpr int kTiles = 2;  // of a warpgroup at a time
constexpr int kPassStrips = 2 * kTiles * kTileStrips;
constexpr int kSmall = 16;  // units of a CTA
constexpr int kThreads = 2 * 128 + 2 * 32;

// Rows of W and blocks of K that are summed in one go.
struct Piece {
  int strip, strips, begin, end;
};

struct Range {
  int cursor, last;
};

__device__ __forceinline__ Range range_of(const Matrix& m) {
  const int units = m.whole ? m.strips : m.split.units(), cta = blockIdx.x;
  return {units * cta / m.split.ctas, units * (cta + 1) / m.split.ctas};
}

__device__ __forceinline__ bool next_piece(const Matrix& m, Range& r, Piece& p) {
  const int left = r.last - r.cursor;
  if (left <= 0) return false;
  if (m.whole) {
    const int passes = (left + kPassStrips - 1) / kPassStrips;
    p = {r.cursor, (left + passes - 1) / passes, 0, m.blocks};
    r.cursor += p.strips;
  } else {
    const int group = r.cursor / m.blocks, begin = r.cursor % m.blocks;
    p = {group * kGroupStrips, min(kGroupStrips, m.strips - group * kGroupStrips), begin, min(m.blocks, begin + left)};
    r.cursor += p.end - p.begin;
  }
  return true;
}

// A ring's slot and the parity of its turn.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int by, int slots) {
    slot += by;
    if (slot >= slots) {
      slot -= slots;
      parity ^= 1;
    }
  }
};

// Operands whose rows are 128 bytes, swizzled, groups of eight rows 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | ((address & 0x3ffff) >> 4);
}

#define SACCADE_ACC8(d, i)                                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
__device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;"
               : SACCADE_ACC8(d, 0)
               : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, 0, 0;"
      : SACCADE_ACC8(d, 0), SACCADE_ACC8(d, 8)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
      : SACCADE_ACC8(d, 0), SACCADE_ACC8(d, 8), SACCADE_ACC8(d, 16), SACCADE_ACC8(d, 24)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

template <int kN>
__global__ void __launch_bounds__(kThreads, 2) linear_kernel(const Linear a, const int w_slots, const int x_slots) {
  constexpr int kXBytes = kN * kBlockCols * 2;
  extern __shared__ char raw[];
  const uint32_t base = (shared_address(raw) + 1023) / 1024 * 1024;
  const uint32_t x_base = base + w_slots * kSlotBytes, barriers = x_base + x_slots * kXBytes;
  const auto w_full = [=](int slot) { return barriers + 8 * slot; };
  const auto w_empty = [=](int slot) { return barriers + 8 * (w_slots + slot); };
  const auto x_full = [=](int slot) { return barriers + 8 * (2 * w_slots + slot); };
  const auto x_empty = [=](int slot) { return barriers + 8 * (2 * w_slots + x_slots + slot); };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  pdl_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < w_slots; ++i) {
      mbarrier_init(w_full(i), kTileStrips);
      mbarrier_init(w_empty(i), 4);
    }
    for (int i = 0; i < x_slots; ++i) {
      mbarrier_init(x_full(i), 1);
      mbarrier_init(x_empty(i), 8);
    }
    fence_barrier_init();
  }
  __syncthreads();

  Range range = range_of(a.m);
  Piece p;
  Turn w_turn, x_turn;

  if (warp == 8) {
    while (next_piece(a.m, range, p)) {
      // A lane a strip. What a last tile lacks arrives without bytes.
      const int tiles = (p.strips + kTileStrips - 1) / kTileStrips;
      const bool bytes = lane < p.strips;
      const bf16* from = a.m.w + (static_cast<int64_t>(p.strip + lane) * a.m.blocks + p.begin) * kBlockElements;
      Turn turn = w_turn;
      turn.advance(lane / kTileStrips, w_slots);
      for (int block = p.begin; block < p.end; ++block, from += kBlockElements) {
        if (lane < tiles * kTileStrips) mbarrier_wait(w_empty(turn.slot), turn.parity ^ 1);
        __syncwarp();  // no lane laps another: they take turns at slots
        if (bytes) {
          mbarrier_expect(w_full(turn.slot), kBlockBytes);
          bulk_copy_evict_first(base + turn.slot * kSlotBytes + lane % kTileStrips * kBlockBytes, from, kBlockBytes,
                                w_full(turn.slot));
        } else if (lane < tiles * kTileStrips) {
          mbarrier_arrive(w_full(turn.slot));
        }
        turn.advance(tiles, w_slots);
      }
      w_turn.slot = __shfl_sync(~0u, turn.slot, 0);
      w_turn.parity = __shfl_sync(~0u, turn.parity, 0);
    }
  } else if (warp == 9) {
    pdl_wait();
    if (lane > 0) return;
    fence_proxy_async();
    while (next_piece(a.m, range, p))
      for (int block = p.begin; block < p.end; ++block) {
        mbarrier_wait(x_empty(x_turn.slot), x_turn.parity ^ 1);
        mbarrier_expect(x_full(x_turn.slot), kXBytes);
        bulk_copy(x_base + x_turn.slot * kXBytes, a.x + static_cast<int64_t>(block) * (kMaxRows * kBlockCols), kXBytes,
                  x_full(x_turn.slot));
        x_turn.advance(1, x_slots);
      }
  } else {
    const int group = warp / 4;
    while (next_piece(a.m, range, p)) {
      float sums[kTiles][kN / 2] = {};
      const int tiles = (p.strips + kTileStrips - 1) / kTileStrips;
      for (int block = p.begin; block < p.end; ++block) {
        mbarrier_wait(x_full(x_turn.slot), x_turn.parity);
        const uint64_t x = descriptor(x_base + x_turn.slot * kXBytes);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          if (2 * i + group >= tiles) continue;
          Turn turn = w_turn;
          turn.advance(2 * i + group, w_slots);
          mbarrier_wait(w_full(turn.slot), turn.parity);
          const uint64_t w = descriptor(base + turn.slot * kSlotBytes);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < kBlockCols / 16; ++k) wgmma(sums[i], w + 2 * k, x + 2 * k);
          wgmma_commit();
          wgmma_wait();
          if (lane == 0) mbarrier_arrive(w_empty(turn.slot));
        }
        if (lane == 0) mbarrier_arrive(x_empty(x_turn.slot));
        w_turn.advance(tiles, w_slots);
        x_turn.advance(1, x_slots);
      }

      const int g = p.strip / kGroupStrips,
                part = g * a.m.split.most() + static_cast<int>(blockIdx.x) - a.m.split.first(g);
      float* partials = a.partials + static_cast<int64_t>(part) * a.rows * kGroupRows;  // of a split matmul
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int strip = (2 * i + group) * kTileStrips + warp % 4;
        if (strip >= p.strips) continue;
        const int n = (p.strip + strip) * kStripRows + lane / 4;
#pragma unroll
        for (int j = 0; j < kN / 2; j += 4) {
          const int b = 2 * j + lane % 4 * 2;
          store(a, partials, n, b, sums[i][j], sums[i][j + 2]);
          store(a, partials, n, b + 1, sums[i][j + 1], sums[i][j + 3]);
        }
      }
    }
  }
}

template <int kN>
void launch(Stream stream, const Linear& a) {
  // A warpgroup may be as many blocks ahead of the other as x has slots: with their tiles these must fit into the ring
  // of weights. What a CTA streams at once needs no more of a ring.
  const bool small = !a.m.whole && (a.m.split.units() + a.m.split.ctas - 1) / a.m.split.ctas <= kSmall;
  const int w_slots = small ? 8 : 24, x_slots = kN == 64 ? 3 : 4;
  constexpr int kMost = 1024 + 24 * kSlotBytes + 4 * kN * kBlockCols * 2 + 16 * 28;
  const int shared = 1024 + w_slots * kSlotBytes + x_slots * kN * kBlockCols * 2 + 16 * (w_slots + x_slots);
  static const bool ready = [] {
    check(cudaFuncSetAttribute(linear_kernel<kN>, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost), "shared memory");
    return true;
  }();
  (void)ready;
  launch_pdl("decode: linear", linear_kernel<kN>, dim3(a.m.split.ctas), dim3(kThreads), shared, stream, a, w_slots,
             x_slots);
}

}  // namespace

void linear_hopper(Stream stream, const Linear& a) {
  if (a.rows <= 16)
    launch<16>(stream, a);
  else if (a.rows <= 32)
    launch<32>(stream, a);
  else
    launch<64>(stream, a);
}

}  // namespace saccade::cuda::chain
