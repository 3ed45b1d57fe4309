// The stages between the matmuls of decode_chained as kernels.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_rows.cuh"

namespace saccade::cuda::chain {
namespace {

// A CTA a row.
__global__ void __launch_bounds__(512) add_norm_kernel(const Norm a) {
  extern __shared__ Eight row[];
  __shared__ float warp_sums[16];
  pdl_launch();
  pdl_wait();
  add_norm_row(
      a, blockIdx.x, threadIdx.x, blockDim.x, row, warp_sums, [] {}, [] { __syncthreads(); },
      [&](int column, const Four& x) { *reinterpret_cast<Four*>(a.x + tile_offset(blockIdx.x, column)) = x; });
}

__global__ void __launch_bounds__(128) rope_append_kernel(const Attention a, const Partials qkv, const bf16* bias) {
  pdl_launch();
  rope_append_heads(a, a.kv, qkv, bias, blockIdx.x * 4 + threadIdx.x / 32, pdl_wait);
}

template <int kDh>
__global__ void __launch_bounds__(128) combine_kernel(const Attention a) {
  pdl_launch();
  combine_head<kDh>(a, blockIdx.x * 4 + threadIdx.x / 32, pdl_wait);
}

}  // namespace

void add_norm(Stream stream, const Norm& a) {
  const dim3 threads(std::min(512, (a.width / 8 + 31) / 32 * 32));
  const size_t shared = static_cast<size_t>(a.width) * sizeof(bf16);
  if (a.partials.data == nullptr) {  // the first of a step: after everything before it
    add_norm_kernel<<<a.rows, threads, shared, stream>>>(a);
    check_launch("decode: norm");
  } else {
    launch_pdl("decode: norm", add_norm_kernel, dim3(a.rows), threads, shared, stream, a);
  }
}

void rope_append(Stream stream, const Attention& a, const Partials& qkv, const bf16* bias) {
  launch_pdl("decode: rope", rope_append_kernel, dim3((rope_items(a) + 3) / 4), dim3(128), 0, stream, a, qkv, bias);
}

void combine(Stream stream, const Attention& a) {
  launch_pdl("decode: combine", a.head_dim == 64 ? combine_kernel<64> : combine_kernel<128>,
             dim3((a.rows * a.heads + 3) / 4), dim3(128), 0, stream, a);
}

}  // namespace saccade::cuda::chain
