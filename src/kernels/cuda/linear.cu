// y = x W^T: checks and dispatch, and the kernel of every device from sm_80 on (any T, N and even K).
//
// A CTA of eight warps makes a tile of 128 x 128; a warp makes 32 x 64 of it with mma.m16n8k16. Both operands come by
// cp.async through a ring of three stages of 64 columns, in the swizzle that strips have in memory, so ldmatrix meets
// no bank conflicts. 2 T N K flops; the ring brings 32 KiB per 2 Mi flops. Sums are float, in the order of K.
#include <algorithm>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/linear_internal.cuh"

namespace saccade::cuda {
namespace {

constexpr int kTile = 128, kThreads = 256, kStages = 3;
constexpr int kOperandBytes = kTile * kBlockCols * 2, kStageBytes = 2 * kOperandBytes;

// Rows row.. of x, columns of block `block`; zeros outside.
__device__ __forceinline__ void copy_x(const LinearArgs& args, uint32_t to, int row, int block) {
#pragma unroll
  for (int i = 0; i < kTile * 8 / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), r = at / 8, column = block * kBlockCols + at % 8 * 8;
    const uint32_t place = to + r * 128 + ((at % 8) ^ (r % 8)) * 16;
    const int left = row + r < args.rows ? args.cols - column : 0;  // columns that exist
    const bf16* from = args.x + static_cast<int64_t>(row + r) * args.cols + column;
    if (args.cols % 8 == 0) {
      cp_async_16_or_zero(place, left > 0 ? from : args.x, left > 0 ? 16 : 0);
    } else {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = 2 * j < left ? *reinterpret_cast<const uint32_t*>(from + 2 * j) : 0;
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(place), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                   : "memory");
    }
  }
}

__device__ __forceinline__ void copy_w(const LinearArgs& args, uint32_t to, int column, int block) {
  const int strips = static_cast<int>(strips_of(args.outs));
#pragma unroll
  for (int i = 0; i < kTile * 8 / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), strip = column / kStripRows + at / 128;
    const bool inside = strip < strips;
    const int64_t from = (static_cast<int64_t>(inside ? strip : 0) * args.w_blocks + block) * kBlockElements;
    cp_async_16_or_zero(to + at * 16, args.w + from + at % 128 * 8, inside ? 16 : 0);
  }
}

template <bool kPieces>
__global__ void __launch_bounds__(kThreads, 2) linear_kernel(const LinearArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t stages = shared_address(shared);
  const int row = blockIdx.x * kTile, column = blockIdx.y * kTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 64;
  const int blocks = (args.cols + kBlockCols - 1) / kBlockCols;
  pdl_launch();
  pdl_wait();

  const auto fetch = [&](int block) {
    const uint32_t to = stages + block % kStages * kStageBytes;
    if (block < blocks) {
      copy_x(args, to, row, block);
      copy_w(args, to + kOperandBytes, column, block);
    }
    cp_async_commit();
  };
  for (int s = 0; s < kStages - 1; ++s) fetch(s);
  float d[2][32] = {};
  const int a_row = warp_row + lane % 16, b_row = warp_column + lane / 16 * 8 + lane % 8;
  for (int block = 0; block < blocks; ++block) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // also: everyone is done with the stage that is fetched next
    fetch(block + kStages - 1);
    const uint32_t x = stages + block % kStages * kStageBytes, w = x + kOperandBytes;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        ldmatrix_x4(a[m], x + (a_row + 16 * m) * 128 + ((2 * k + lane / 16) ^ (a_row % 8)) * 16);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b, w + (b_row + 16 * n) * 128 + ((2 * k + lane / 8 % 2) ^ (b_row % 8)) * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_16x8x16(reinterpret_cast<float(&)[4]>(d[m][8 * n]), a[m], b[0], b[1]);
          mma_16x8x16(reinterpret_cast<float(&)[4]>(d[m][8 * n + 4]), a[m], b[2], b[3]);
        }
      }
    }
  }
  const Bias<8> bias = load_bias<8>(args, column + warp_column);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (args.bias) add_bias<8>(bias, d[m]);
    write_fragments<8, kPieces>(args, d[m], row + warp_row + 16 * m + lane / 4, column + warp_column);
  }
}

void linear_portable(Stream stream, const LinearArgs& args) {
  const auto kernel = args.width() % 8 == 0 ? linear_kernel<true> : linear_kernel<false>;
  constexpr int kShared = kStages * kStageBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "linear");
  const auto tiles = [](int n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
  launch_pdl("linear", kernel, dim3(tiles(args.rows), tiles(args.outs)), kThreads, kShared, stream, args);
}

}  // namespace

void linear(Stream stream, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out) {
  const bool gated = out == LinearOut::kGateUpSilu;
  CHECK(w.format == Weight::Format::kStrips && w.parts == 1, "linear: weights are not in strips");
  CHECK(x.rank == 2 && y.rank == 2 && x.contiguous() && y.contiguous() && x.dim(0) == y.dim(0), "linear: x {}, y {}",
        x.describe(), y.describe());
  CHECK(x.dim(1) % 2 == 0 && x.dim(1) <= w.data[0].dim(1) * kBlockCols && y.dim(1) == (gated ? w.rows() / 2 : w.rows()),
        "linear: x {}, w [{}, {}], y {}", x.describe(), w.rows(), w.cols(), y.describe());
  CHECK(!gated || w.rows() % 16 == 0, "linear: {} rows are not gates and ups", w.rows());
  if (x.dim(0) == 0) return;
  LinearArgs args;
  args.x = reinterpret_cast<const bf16*>(x.as<BFloat16>());
  args.w = reinterpret_cast<const bf16*>(w.data[0].as<BFloat16>());
  args.bias = w.bias[0] ? reinterpret_cast<const bf16*>(w.bias[0].as<BFloat16>()) : nullptr;
  args.y = out == LinearOut::kFloat ? static_cast<void*>(y.as<float>()) : y.as<BFloat16>();
  args.rows = static_cast<int>(x.dim(0));
  args.cols = static_cast<int>(x.dim(1));
  args.outs = static_cast<int>(w.rows());
  args.w_blocks = static_cast<int>(w.data[0].dim(1));
  args.out = out;
  if (use_hopper() && args.cols % 8 == 0 && args.width() % 8 == 0)
    linear_hopper(stream, args);
  else
    linear_portable(stream, args);
}

}  // namespace saccade::cuda
