// Full attention inside segments of at most 64 rows (windows of a vision tower) for heads of 80 values, Hopper.
//
// A unit of work is a head of a window; the CTAs, one per SM, have equal runs of units. A thread brings q, k and v of a
// unit as tensor boxes with the 32-byte swizzle (five units of 16 columns make 80), kStages units ahead; four warps
// bring cos and sin once per window. Three warpgroups take turns: turn q and k in place, scores by m64n64k16, the whole
// softmax in registers, its product with the values by m64n80k16 (probabilities rounded to BF16).
// 8*P*H*80 bytes, 32 flops a byte: memory bounds it.
#include <algorithm>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/segment_attention.h"
#include "kernels/cuda/segment_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace saccade::cuda {
namespace {

constexpr int kDim = 80, kChunks = kDim / 8, kRows = kWindowRows;
constexpr int kWarpgroups = 3, kCopyThreads = 128, kThreads = kWarpgroups * 128 + kCopyThreads;
constexpr int kStages = 6;
constexpr int kUnitBytes = kRows * 32;  // 16 columns: rows of 32 bytes, two chunks that swap every four rows
constexpr int kTileBytes = kDim / 16 * kUnitBytes;
constexpr int kTurnBytes = kDim * 4 + 16;  // of a row; rows are in different banks

struct Args {
  const float* cos_sin;  // null: nothing to turn
  const int* cu_seqlens;
  int heads, units;
  float scale_log2;
  bf16* y;
};

struct Shared {
  alignas(256) unsigned char tiles[kStages][3][kTileBytes];  // q, k, v
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

// 64 rows of five units of 16 columns; rows past the end of qkv are zeros.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& qkv, int row, int unit, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&qkv), "r"(0), "r"(row), "r"(unit), "r"(barrier)
      : "memory");
}

__device__ void produce(const CUtensorMap& qkv, const Args& args, Shared& s, int first, int count, int thread) {
  Unit unit(args, first);
  for (int index = 0, window = -1; index < count; ++index, unit.advance(args, 1)) {
    unit.find_rows(args);
    if (args.cos_sin && unit.window != window) {
      window = unit.window;
      mbarrier_wait(shared_address(&s.turns_empty[window % 2]), window / 2 % 2 ^ 1);
      const float* from = args.cos_sin + int64_t{unit.begin} * kDim;
      const uint32_t to = shared_address(s.turns[window % 2]);
      for (int i = thread; i < unit.rows * (kDim / 4); i += kCopyThreads)
        cp_async_16(to + i / (kDim / 4) * kTurnBytes + i % (kDim / 4) * 16, from + 4 * i);
      arrive_after_copies(&s.turns_full[window % 2]);
    }
    const int stage = index % kStages;
    mbarrier_wait(shared_address(&s.empty[stage]), index / kStages % 2 ^ 1);
    if (thread == 0) {
      const uint32_t full = shared_address(&s.full[stage]);
      mbarrier_expect(full, unit.rows > 0 ? 3 * kTileBytes : 0);
      for (int which = 0; which < 3 && unit.rows > 0; ++which)
        copy_box(shared_address(s.tiles[stage][which]), qkv, unit.begin, (which * args.heads + unit.head) * (kDim / 16),
                 full);
    }
  }
}

__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return chunk / 2 * kUnitBytes + row * 32 + (chunk % 2 ^ row / 4 % 2) * 16;
}

// A thread turns a row of q or k.
__device__ __forceinline__ void turn(unsigned char* tiles, const unsigned char* turns) {
  const int row = threadIdx.x % kRows;
  unsigned char* const x = tiles + threadIdx.x % 128 / kRows * kTileBytes;
  const auto* cos = reinterpret_cast<const float4*>(turns + row * kTurnBytes);
  const auto* sin = cos + kDim / 8;
#pragma unroll
  for (int c = 0; c < kChunks / 2; ++c) {
    auto& low = *reinterpret_cast<uint4*>(x + chunk_offset(row, c));
    auto& high = *reinterpret_cast<uint4*>(x + chunk_offset(row, c + kChunks / 2));
    uint4 a = low, b = high;
    turn_eight(a, b, cos + 2 * c, sin + 2 * c);
    low = a;
    high = b;
  }
}

// Rows of other windows must not meet the values, not even with weight 0: they could be infinite.
__device__ __forceinline__ void clear_values(unsigned char* v, int rows) {
  const int row = threadIdx.x % kRows, half = threadIdx.x % 128 / kRows * (kChunks / 2);
  if (row < rows) return;
#pragma unroll
  for (int c = 0; c < kChunks / 2; ++c) *reinterpret_cast<uint4*>(v + chunk_offset(row, half + c)) = {0, 0, 0, 0};
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
    if (unit.rows < kRows) clear_values(s.tiles[stage][2], unit.rows);
    fence_proxy_async_shared();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");

    const uint32_t tiles = shared_address(s.tiles[stage][0]);
    constexpr uint64_t kSwizzle32 = uint64_t{3} << 62;
    const uint64_t q = matrix(tiles, 16, 256) | kSwizzle32, k = matrix(tiles + kTileBytes, 16, 256) | kSwizzle32;
    const uint64_t v = matrix(tiles + 2 * kTileBytes, kUnitBytes, 256) | kSwizzle32;
    float x[32];
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
      wgmma_scores(x, q + step * (kUnitBytes / 16), k + step * (kUnitBytes / 16), step > 0);
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
    for (int step = 0; step < kRows / 16; ++step) wgmma_values(sums, p + 4 * step, v + step * (2 * 256 / 16));
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

__global__ void __launch_bounds__(kThreads, 1)
    segment_windows(const __grid_constant__ CUtensorMap qkv, const Args args) {
  extern __shared__ __align__(256) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(shared_address(&s.full[i]), 1);
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
    produce(qkv, args, s, first, count, threadIdx.x % 128);
  else
    consume(args, s, first, count, warpgroup);
}

// qkv as [3*H*5 units of 16 columns][P rows][16 columns], copied in boxes of 5 x 64 x 16.
CUtensorMap map_of(const Tensor& qkv) {
  const auto rows = static_cast<cuuint64_t>(qkv.dim(0)), heads = static_cast<cuuint64_t>(qkv.dim(2));
  return tensor_map<3>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, qkv.data, {16, rows, 3 * heads * (kDim / 16)},
                       {3 * heads * kDim * 2, 32}, {16, kRows, kDim / 16}, CU_TENSOR_MAP_SWIZZLE_32B,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

}  // namespace

// Every warpgroup must meet every window between a CTA's first and last one.
bool segment_windows_fit(const Tensor& qkv) { return qkv.dim(3) == kDim && qkv.dim(2) >= kWarpgroups; }

void segment_attention_windows(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                               float scale, const Tensor& y) {
  Args args = {};
  args.cos_sin = static_cast<const float*>(cos_sin.data);
  args.cu_seqlens = cu_seqlens.as<int32_t>();
  args.heads = static_cast<int>(qkv.dim(2));
  args.units = static_cast<int>((cu_seqlens.dim(0) - 1) * qkv.dim(2));
  args.scale_log2 = scale * kLog2E;
  args.y = static_cast<bf16*>(y.data);
  check(cudaFuncSetAttribute(segment_windows, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "segment_attention");
  launch_pdl("segment_attention: windows", segment_windows, dim3(std::min(sm_count(), args.units)), dim3(kThreads),
             sizeof(Shared), stream, map_of(qkv), args);
}

}  // namespace saccade::cuda
