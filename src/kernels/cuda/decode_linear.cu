// Matmul of a few rows with weights in strips, for every device: one CTA a strip, a warp for each 16 rows of x,
// fragments straight from memory. It is there to be right; Hopper has decode_batch.cu.
// y [B,N] = x [B,K] W^T; 2 B N K flops, 2 N K bytes of weights. Sums over K in one order, in float.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_chain.cuh"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::chain {
namespace {

__device__ __forceinline__ uint32_t pair_at(const bf16* tile, int row, int column) {
  return *reinterpret_cast<const uint32_t*>(tile + swizzled(row, column));
}

__global__ void __launch_bounds__(128) linear_kernel(const Linear a) {
  const int strip = blockIdx.x, warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  const int first_row = warp * 16;
  pdl_launch();
  pdl_wait();
  if (first_row >= a.rows) return;
  float sums[2][4] = {};
  for (int block = 0; block < a.m.blocks; ++block) {
    const bf16* w = a.m.w + (static_cast<int64_t>(strip) * a.m.blocks + block) * kBlockElements;
    const bf16* x = a.x + static_cast<int64_t>(block) * (kMaxRows * kBlockCols);
    for (int k = 0; k < kBlockCols; k += 16) {
      const uint32_t w4[4] = {pair_at(w, row, k + column), pair_at(w, row + 8, k + column),
                              pair_at(w, row, k + 8 + column), pair_at(w, row + 8, k + 8 + column)};
      for (int j = 0; j < 2; ++j)
        mma_16x8x16(sums[j], w4, pair_at(x, first_row + 8 * j + row, k + column),
                    pair_at(x, first_row + 8 * j + row, k + 8 + column));
    }
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 2; ++i)
      store(a, strip * kStripRows + row, first_row + 8 * j + column + i, sums[j][i], sums[j][2 + i]);
}

}  // namespace

void linear_portable(Stream stream, const Linear& a) {
  launch_pdl("decode: linear", linear_kernel, dim3(a.m.strips), dim3(128), 0, stream, a);
}

}  // namespace saccade::cuda::chain
