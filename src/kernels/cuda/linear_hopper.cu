// y = x W^T on Hopper: wgmma fed by a ring of bulk tensor copies.
//
// One persistent CTA per SM: a producer warp and two consumer warpgroups. A tile of y is kRows x kCols; a stage of the
// ring holds 64 columns of x [kRows] and of w [kCols], both in the 128-byte swizzle: x is swizzled by its tensor map, a
// strip of w is stored that way, so its map copies blocks of 2 KiB as they are. The CTAs of a cluster of two have tiles
// below each other, and each copies half of the weights for both. With 128 rows the warpgroups share a tile (64 rows
// each) or, with kAlternate, take turns: one multiplies a whole tile while the other writes its own, which pays where
// an SM has several. With 64 rows (few tokens: weights are most of the bytes) each warpgroup has half of the columns.
//
// Roofline: 2 T N K flops; a stage costs kRows kCols / 32 cycles of the tensor cores and brings 128 (kRows + kCols)
// bytes into the SM, so a tile of 128 x 192 asks for 53 bytes per cycle, of which L2 gives 37 where weights are shared.
// Which tile runs is chosen by an estimate of the waves: pairs are the cheaper ones, single CTAs waste no rows of a
// pair. Sums are float, in the order of K (16 at a time) whatever the tile, so a row does not depend on T.
#include <algorithm>
#include <array>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/linear_internal.cuh"
#include "kernels/cuda/linear_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace saccade::cuda {
namespace {

constexpr int kConsumers = 2;                     // warpgroups
constexpr int kThreads = 128 * (kConsumers + 1);  // the last warpgroup produces
constexpr int kSharedBytes = 227 * 1024;          // of a CTA
constexpr int kMaxStages = 8;
constexpr int kBarrierBytes = (kMaxStages * 2 + 2) * 8;
constexpr int kRasterRows = 2048;  // rows of x that stay in L2 while weights pass

// kAlternate: a tile belongs to one warpgroup; the other one computes while this one writes.
template <int kRows, int kCols, int kCluster, bool kAlternate>
struct Tile {
  static constexpr int kWarpgroupCols = kRows == 128 ? kCols : kCols / 2;
  static constexpr int kPieces = kAlternate ? 2 : 1;   // of 64 rows, of a warpgroup
  static constexpr int kReaders = kAlternate ? 4 : 8;  // warps that read a stage
  static constexpr int kXBytes = kRows * 128, kWBytes = kCols * 128;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStages = std::min(kMaxStages, (kSharedBytes - 1024 - kBarrierBytes) / kStageBytes);
  static constexpr int kShared = kStages * kStageBytes + 1024 + kBarrierBytes;  // stages start at multiples of 1024
};

// Tiles of y in the order in which clusters take them: down groups of rows, then across.
struct Raster {
  int row_tiles, col_tiles, group;

  __device__ int count() const { return row_tiles * col_tiles; }
  __device__ int2 at(int tile) const {
    const int first = tile / (group * col_tiles) * group, rows = min(group, row_tiles - first);
    const int within = tile - first * col_tiles;
    return {first + within % rows, within / rows};
  }
};

struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
  __device__ void skip(int count, int stages) {
    stage += count;
    phase ^= stage / stages & 1;
    stage %= stages;
  }
};

__device__ __forceinline__ void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_strips(uint32_t to, const CUtensorMap& map, int block, int strip,
                                            uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(to),
      "l"(&map), "r"(0), "r"(block), "r"(strip), "r"(barrier)
      : "memory");
}
// To the same place of both CTAs of the cluster.
__device__ __forceinline__ void share_strips(uint32_t to, const CUtensorMap& map, int block, int strip,
                                             uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(0), "r"(block), "r"(strip), "r"(barrier), "h"(static_cast<uint16_t>(3))
      : "memory");
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRows, int kCols, int kCluster, bool kAlternate>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    linear_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ LinearArgs args) {
  using T = Tile<kRows, kCols, kCluster, kAlternate>;
  extern __shared__ uint8_t shared[];
  const uint32_t stages = (shared_address(shared) + 1023) & ~1023u;  // the same in both CTAs
  const uint32_t full = stages + T::kStages * T::kStageBytes, empty = full + T::kStages * 8,
                 turns = empty + T::kStages * 8;
  const int warp = threadIdx.x / 32, rank = kCluster > 1 ? cluster_rank() : 0;
  const int first_tile = blockIdx.x / kCluster, step = gridDim.x / kCluster;
  const int row_tiles = (args.rows + kRows * kCluster - 1) / (kRows * kCluster);
  const Raster raster = {row_tiles, (args.outs + kCols - 1) / kCols, min(row_tiles, kRasterRows / (kRows * kCluster))};
  const int blocks = (args.cols + kBlockCols - 1) / kBlockCols;

  if (threadIdx.x == kThreads - 128) {
    prefetch(w_map);
    prefetch(x_map);
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      mbarrier_init(full + 8 * s, 1);
      mbarrier_init(empty + 8 * s, kCluster * T::kReaders);  // a lane of every consumer warp that reads it
    }
    for (int g = 0; g < kConsumers; ++g) mbarrier_init(turns + 8 * g, 4);
    fence_barrier_init();
  }
  if constexpr (kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
  pdl_launch();

  if (warp / 4 == kConsumers) {
    give_registers<24>();
    if (warp == 4 * kConsumers && threadIdx.x % 32 == 0) {
      const auto copy_w = [&](const Ring& ring, int block, int col_tile) {
        const uint32_t to = stages + ring.stage * T::kStageBytes + T::kXBytes, barrier = full + 8 * ring.stage;
        constexpr int kStrips = kCols / kStripRows / kCluster;
        const int strip = (col_tile * kCluster + rank) * kStrips;
        mbarrier_expect(barrier, T::kStageBytes);
        if constexpr (kCluster > 1)
          share_strips(to + rank * kStrips * kBlockBytes, w_map, block, strip, barrier);
        else
          copy_strips(to, w_map, block, strip, barrier);
      };
      // Weights depend on no other kernel: the first stages' are on their way before the wait.
      const int ahead = min(blocks, T::kStages);
      Ring ring;
      if (first_tile < raster.count())
        for (Ring r; r.stage < ahead && r.phase == 0; r.advance(T::kStages))
          copy_w(r, r.stage, raster.at(first_tile).y);
      pdl_wait();
      for (int tile = first_tile; tile < raster.count(); tile += step) {
        const int2 at = raster.at(tile);
        const int row = (at.x * kCluster + rank) * kRows;
        for (int b = 0; b < blocks; ++b, ring.advance(T::kStages)) {
          if (tile != first_tile || b >= ahead) {
            mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
            copy_w(ring, b, at.y);
          }
          copy_tile(stages + ring.stage * T::kStageBytes, x_map, b * kBlockCols, row, full + 8 * ring.stage);
        }
      }
      // The other CTA still arrives here until every stage is free.
      for (int s = 0; s < T::kStages; ++s, ring.advance(T::kStages))
        mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
    }
  } else {
    take_registers<240>();
    pdl_wait();
    constexpr int kN = T::kWarpgroupCols;
    const int group = warp / 4;
    const int group_row = kRows == 128 && !kAlternate ? group * 64 : 0, group_col = kRows == 128 ? 0 : group * kN;
    const int lane = threadIdx.x % 32, lane_row = group_row + warp % 4 * 16 + lane / 4;
    const auto release = [&](int stage) {
      if (lane < kCluster) {
        if constexpr (kCluster > 1)
          mbarrier_arrive_read(cluster_address(empty + 8 * stage, lane), 1);
        else
          mbarrier_arrive(empty + 8 * stage);
      }
    };
    Ring ring;
    const auto pass_turn = [&] {  // every stage of this tile has arrived: the next tile's are the other warpgroup's
      if (!kAlternate) return;
      if (lane == 0) mbarrier_arrive(turns + 8 * (group ^ 1));
      ring.skip(blocks, T::kStages);
    };
    uint32_t turn = group ^ 1;  // the first warpgroup need not wait for its first turn
    if (kAlternate && group == 1) ring.skip(blocks, T::kStages);
    for (int tile = first_tile + (kAlternate ? group * step : 0); tile < raster.count();
         tile += kAlternate ? 2 * step : step) {
      if (kAlternate) mbarrier_wait(turns + 8 * group, turn);
      turn ^= 1;
      const int2 at = raster.at(tile);
      const int row = (at.x * kCluster + rank) * kRows;
      if (row >= args.rows) {  // the lower tile of the last pair may have no rows
        for (int b = 0; b < blocks; ++b, ring.advance(T::kStages)) {
          mbarrier_wait(full + 8 * ring.stage, ring.phase);
          release(ring.stage);
        }
        pass_turn();
        continue;
      }
      float d[T::kPieces][kN / 2];
      int before = 0;
      for (int b = 0; b < blocks; ++b, ring.advance(T::kStages)) {
        mbarrier_wait(full + 8 * ring.stage, ring.phase);
        const uint32_t stage = stages + ring.stage * T::kStageBytes;
        const uint64_t x = matrix_descriptor(stage + group_row * 128);
        const uint64_t w = matrix_descriptor(stage + T::kXBytes + group_col * 128);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int m = 0; m < T::kPieces; ++m) wgmma<kN>(d[m], x + m * (64 * 128 >> 4) + 2 * k, w + 2 * k, b | k);
        wgmma_commit();
        wgmma_wait<1>();
        if (b > 0) release(before);
        before = ring.stage;
      }
      pass_turn();
      const int column = at.y * kCols + group_col;
      const Bias<kN / 8> bias = load_bias<kN / 8>(args, column);
      wgmma_wait<0>();
      release(before);
#pragma unroll
      for (int m = 0; m < T::kPieces; ++m) {
#pragma unroll
        for (float& v : d[m]) asm volatile("" : "+f"(v)::"memory");  // not read before the wait
        if (args.bias) add_bias<kN / 8>(bias, d[m]);
      }
#pragma unroll
      for (int m = 0; m < T::kPieces; ++m) write_fragments<kN / 8, true>(args, d[m], row + lane_row + 64 * m, column);
    }
  }
}

struct Variant {
  int rows, cols;
  bool alternate;
  int cluster, shared;
  void (*kernel)(const CUtensorMap, const CUtensorMap, const LinearArgs);
};
template <int kRows, int kCols, int kCluster, bool kAlternate = false>
constexpr Variant variant() {
  return {kRows,
          kCols,
          kAlternate,
          kCluster,
          Tile<kRows, kCols, kCluster, kAlternate>::kShared,
          linear_kernel<kRows, kCols, kCluster, kAlternate>};
}
const std::array kVariants = {variant<64, 64, 1>(),         variant<64, 128, 1>(),        variant<64, 256, 1>(),
                              variant<128, 64, 2>(),        variant<128, 96, 2>(),        variant<128, 128, 2>(),
                              variant<128, 160, 2>(),       variant<128, 224, 2>(),       variant<128, 256, 2>(),
                              variant<128, 128, 2, true>(), variant<128, 160, 2, true>(), variant<128, 192, 2, true>(),
                              variant<128, 160, 1>(),       variant<128, 192, 1>(),       variant<128, 256, 1>(),
                              variant<128, 160, 1, true>(), variant<128, 192, 1, true>()};

bool takes(const Variant& v, const LinearArgs& args) {
  const int warpgroup_cols = v.rows == 128 ? v.cols : v.cols / 2;
  return args.out != LinearOut::kGateUpSilu || warpgroup_cols % 64 == 0;  // a gate chunk's four lanes
}

// Cycles of the busiest SM: a stage takes as long as the tensor cores (at the clock that power leaves) or the copies
// need; a tile is written by both warpgroups when it is done, or by one while the other computes.
double estimate(const Variant& v, const LinearArgs& args) {
  constexpr double kMath = 1.3 / 32, kWrite = 0.15;
  const double bytes_per_cycle = v.cluster == 2 ? 48 : 44;
  const int row_tiles = (args.rows + v.rows * v.cluster - 1) / (v.rows * v.cluster);
  const int tiles = row_tiles * ((args.outs + v.cols - 1) / v.cols), slots = sm_count() / v.cluster;
  const double stage = std::max(v.rows * v.cols * kMath, (v.rows + v.cols) * 128 / bytes_per_cycle);
  const double sums = static_cast<double>(blocks_of(args.cols)) * stage, write = v.rows * v.cols * kWrite;
  const int waves = (tiles + slots - 1) / slots;
  return v.alternate ? waves * std::max(sums, 2 * write) + 2 * write : waves * (sums + write);
}

const Variant& choose(const LinearArgs& args) {
  const Variant* best = nullptr;
  for (const Variant& v : kVariants)
    if (takes(v, args) && (!best || estimate(v, args) < estimate(*best, args))) best = &v;
  return *best;
}

}  // namespace

void linear_hopper(Stream stream, const LinearArgs& args) {
  const Variant& v = choose(args);
  const auto rows = static_cast<cuuint64_t>(args.rows), cols = static_cast<cuuint64_t>(args.cols);
  const CUtensorMap x_map = tensor_map<2>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, args.x, {cols, rows}, {cols * 2},
                                          {kBlockCols, static_cast<cuuint32_t>(v.rows)}, CU_TENSOR_MAP_SWIZZLE_128B,
                                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  const auto blocks = static_cast<cuuint64_t>(args.w_blocks), strips = static_cast<cuuint64_t>(strips_of(args.outs));
  const CUtensorMap w_map = tensor_map<3>(
      CU_TENSOR_MAP_DATA_TYPE_INT64, args.w, {kBlockBytes / 8, blocks, strips}, {kBlockBytes, blocks * kBlockBytes},
      {kBlockBytes / 8, 1, static_cast<cuuint32_t>(v.cols / kStripRows / v.cluster)}, CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  const int row_tiles = (args.rows + v.rows * v.cluster - 1) / (v.rows * v.cluster);
  const int tiles = row_tiles * ((args.outs + v.cols - 1) / v.cols);
  const int grid = std::min(tiles, sm_count() / v.cluster) * v.cluster;
  check(cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, v.shared), "linear");
  launch_pdl("linear", v.kernel, static_cast<unsigned>(grid), kThreads, static_cast<size_t>(v.shared), stream, x_map,
             w_map, args);
}

}  // namespace saccade::cuda
