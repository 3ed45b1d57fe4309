// Full attention inside segments of at most 64 rows (windows of a vision tower) for heads of 80 values, Hopper.
//
// A unit of work is a head of a window; the CTAs, one per SM, have equal runs of units. Four warps bring q, k and v of
// a unit by cp.async into the order that wgmma reads without swizzle, [10 chunks of 16 bytes][64 rows], kStages units
// ahead, and cos and sin once per window. Three warpgroups take turns: turn q and k in place, scores by m64n64k16, the
// whole softmax in registers, its product with the values by m64n80k16 (probabilities rounded to BF16).
// 8*P*H*80 bytes, 32 flops a byte: memory bounds it.
#include <algorithm>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/segment_attention.h"
#include "kernels/cuda/segment_wgmma.cuh"

namespace saccade::cuda {
namespace {

constexpr int kDim = 80, kChunks = kDim / 8, kRows = kWindowRows;
constexpr int kWarpgroups = 3, kCopyThreads = 128, kThreads = kWarpgroups * 128 + kCopyThreads;
constexpr int kStages = 6;
constexpr int kChunkBytes = kRows * 16 + 16;  // chunks of a row are in different banks
constexpr int kTileBytes = kChunks * kChunkBytes;
constexpr int kTurnBytes = kDim * 4 + 16;  // of a row; rows are in different banks

struct Args {
  const bf16* qkv;
  const float* cos_sin;  // null: nothing to turn
  const int* cu_seqlens;
  int heads, units;
  float scale_log2;
  bf16* y;
};

struct Shared {
  alignas(128) unsigned char tiles[kStages][3][kTileBytes];  // q, k, v
  alignas(128) unsigned char turns[2][kRows * kTurnBytes];   // of a window and the next one
  uint64_t full[kStages], empty[kStages], turns_full[2], turns_empty[2];
};

// A unit of work; windows are counted from the first one of the CTA.
struct Unit {
  int first_window, window = 0, head, begin, rows;

  __device__ Unit(const Args& args, int index) : first_window(index / args.heads), head(index % args.heads) {}
  __device__ void advance(const Args& args, int units) {
    for (head += units; head >= args.heads; head -= args.heads) ++window;
  }
  __device__ void find_rows(const Args& args) {
    begin = args.cu_seqlens[first_window + window];
    const int length = args.cu_seqlens[first_window + window + 1] - begin;
    rows = length <= kRows ? length : 0;
  }
};

__device__ __forceinline__ void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Copies rows of kRowChunks chunks: a thread has one chunk of every few rows.
template <int kRowChunks, class Copy>
__device__ __forceinline__ void for_rows(int thread, Copy&& copy) {
  constexpr int kPass = kCopyThreads / kRowChunks;  // rows
  const int chunk = thread % kRowChunks, row = thread / kRowChunks;
  if (row >= kPass) return;
#pragma unroll
  for (int r = 0; r < kRows; r += kPass)
    if (r + kPass <= kRows || row + r < kRows) copy(row + r, chunk);
}

__device__ void produce(const Args& args, Shared& s, int first, int count, int thread) {
  const int stride = 3 * args.heads * kDim, part = args.heads * kDim;
  Unit unit(args, first);
  for (int index = 0, window = -1; index < count; ++index, unit.advance(args, 1)) {
    unit.find_rows(args);
    if (args.cos_sin && unit.window != window) {
      window = unit.window;
      mbarrier_wait(shared_address(&s.turns_empty[window % 2]), window / 2 % 2 ^ 1);
      const float* from = args.cos_sin + int64_t{unit.begin} * kDim;
      const uint32_t to = shared_address(s.turns[window % 2]);
      for_rows<kDim / 4>(thread, [&](int row, int chunk) {
        if (row < unit.rows) cp_async_16(to + row * kTurnBytes + chunk * 16, from + row * kDim + chunk * 4);
      });
      arrive_after_copies(&s.turns_full[window % 2]);
    }
    const int stage = index % kStages;
    mbarrier_wait(shared_address(&s.empty[stage]), index / kStages % 2 ^ 1);
    const bf16* from = args.qkv + int64_t{unit.rows > 0 ? unit.begin : 0} * stride + unit.head * kDim;
    const uint32_t to = shared_address(s.tiles[stage][0]);
    for_rows<kChunks>(thread, [&](int row, int chunk) {
      const bool there = row < unit.rows;
      const bf16* q = from + (there ? row * stride + chunk * 8 : 0);
      const uint32_t place = to + chunk * kChunkBytes + row * 16;
      if (there) {
        cp_async_16(place, q);
        cp_async_16(place + kTileBytes, q + part);
      }
      cp_async_16_or_zero(place + 2 * kTileBytes, q + 2 * part, there ? 16 : 0);
    });
    arrive_after_copies(&s.full[stage]);
  }
}

// A thread turns a row of q or k.
__device__ __forceinline__ void turn(unsigned char* tiles, const unsigned char* turns) {
  const int row = threadIdx.x % kRows;
  unsigned char* const x = tiles + threadIdx.x % 128 / kRows * kTileBytes + row * 16;
  const auto* cos = reinterpret_cast<const float4*>(turns + row * kTurnBytes);
  const auto* sin = cos + kDim / 8;
#pragma unroll
  for (int c = 0; c < kChunks / 2; ++c) {
    auto& low = *reinterpret_cast<uint4*>(x + c * kChunkBytes);
    auto& high = *reinterpret_cast<uint4*>(x + (c + kChunks / 2) * kChunkBytes);
    uint4 a = low, b = high;
    turn_eight(a, b, cos + 2 * c, sin + 2 * c);
    low = a;
    high = b;
  }
}

__device__ void consume(const Args& args, Shared& s, int first, int count, int warpgroup) {
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 4 * 16;
  int left = 0;  // windows that this warpgroup has behind it
  Unit unit(args, first);
  unit.advance(args, warpgroup);
  for (int index = warpgroup; index < count; index += kWarpgroups, unit.advance(args, kWarpgroups)) {
    unit.find_rows(args);
    const int stage = index % kStages;
    for (; left < unit.window; ++left) arrive(&s.turns_empty[left % 2]);
    if (args.cos_sin) mbarrier_wait(shared_address(&s.turns_full[unit.window % 2]), unit.window / 2 % 2);
    mbarrier_wait(shared_address(&s.full[stage]), index / kStages % 2);
    if (args.cos_sin) turn(s.tiles[stage][0], s.turns[unit.window % 2]);
    fence_proxy_async_shared();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");

    const uint32_t tiles = shared_address(s.tiles[stage][0]);
    const uint64_t q = matrix(tiles, kChunkBytes, 128), k = matrix(tiles + kTileBytes, kChunkBytes, 128);
    const uint64_t v = matrix(tiles + 2 * kTileBytes, 128, kChunkBytes);
    float x[32];
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
      wgmma_scores(x, q + step * (2 * kChunkBytes / 16), k + step * (2 * kChunkBytes / 16), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(x);

    // Rows lane / 4 and lane / 4 + 8 of the warp's 16.
    float base[2] = {-INFINITY, -INFINITY}, total[2] = {};
    if (unit.rows < kRows) {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= unit.rows) x[i] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) base[i / 2 % 2] = fmaxf(base[i / 2 % 2], x[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = quad_max(base[r]) * args.scale_log2;
    uint32_t p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float low = exp2_approx(fmaf(x[2 * i], args.scale_log2, -base[i % 2]));
      const float high = exp2_approx(fmaf(x[2 * i + 1], args.scale_log2, -base[i % 2]));
      total[i % 2] += low + high;
      p[i] = pack_bf16(low, high);
    }
    float sums[40];
#pragma unroll
    for (int i = 0; i < 40; ++i) sums[i] = 0;
    pin(sums);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) wgmma_values(sums, p + 4 * step, v + step * (2 * 128 / 16));
    wgmma_commit();
    wgmma_wait<0>();
    pin(sums);
    arrive(&s.empty[stage]);

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row + lane / 4 + r * 8;
      bf16* const to = args.y + (int64_t{unit.begin + row} * args.heads + unit.head) * kDim;
      store_row(sums, r, quad_sum(total[r]), to, row < unit.rows);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) segment_windows(const Args args) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(shared_address(&s.full[i]), kCopyThreads);
      mbarrier_init(shared_address(&s.empty[i]), 4);
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(shared_address(&s.turns_full[i]), kCopyThreads);
      mbarrier_init(shared_address(&s.turns_empty[i]), 4 * kWarpgroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  pdl_wait();
  pdl_launch();
  const int first = static_cast<int>(int64_t{args.units} * blockIdx.x / gridDim.x);
  const int count = static_cast<int>(int64_t{args.units} * (blockIdx.x + 1) / gridDim.x) - first;
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == kWarpgroups)
    produce(args, s, first, count, threadIdx.x % 128);
  else
    consume(args, s, first, count, warpgroup);
}

}  // namespace

// Every warpgroup must meet every window between a CTA's first and last one.
bool segment_windows_fit(const Tensor& qkv) { return qkv.dim(3) == kDim && qkv.dim(2) >= kWarpgroups; }

void segment_attention_windows(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                               float scale, const Tensor& y) {
  Args args = {};
  args.qkv = static_cast<const bf16*>(qkv.data);
  args.cos_sin = static_cast<const float*>(cos_sin.data);
  args.cu_seqlens = cu_seqlens.as<int32_t>();
  args.heads = static_cast<int>(qkv.dim(2));
  args.units = static_cast<int>((cu_seqlens.dim(0) - 1) * qkv.dim(2));
  args.scale_log2 = scale * kLog2E;
  args.y = static_cast<bf16*>(y.data);
  check(cudaFuncSetAttribute(segment_windows, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "segment_attention");
  launch_pdl("segment_attention: windows", segment_windows, dim3(std::min(sm_count(), args.units)), dim3(kThreads),
             sizeof(Shared), stream, args);
}

}  // namespace saccade::cuda
