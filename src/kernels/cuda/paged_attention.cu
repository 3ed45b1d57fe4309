// paged_attention: the choice of a kernel, and the one of every device from sm_80 on.
//
// CTA: 4 warps of 16 rows each (paged_attention.cuh); keys and values of 64 tokens at a time, two stages of cp.async;
// mma.m16n8k16 (FlashAttention-2, arXiv 2307.08691). Launch: (sequences * key heads, row tiles) CTAs of 128 threads,
// longest tiles first. Operations: 4 Dh for each visible (row, key); bound by the tensor cores.
// Numerics: products in float; P is rounded to bf16 relative to the row's reference, its sum is of unrounded
// weights; O / sum is rounded once.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/paged_attention.cuh"

namespace saccade::cuda {

void paged_attention_hopper(Stream stream, const PagedAttention& a, int64_t longest_q);

namespace {

constexpr int kThreads = 128;
constexpr uint32_t kBlock = kKvPageTokens * kBlockCols * 2;  // bytes of 64 values of 64 tokens

// Address of 16 bytes (8 values) of a token.
__device__ __forceinline__ uint32_t chunk_address(uint32_t tile, int token, int chunk) {
  return tile + static_cast<uint32_t>(chunk / 8) * kBlock +
         static_cast<uint32_t>(token * 128 + (chunk % 8 ^ token % 8) * 16);
}

// Starts the copy of a page's keys or values of one head; tokens from `valid` on become 0, as what the page holds there
// may be infinite, which a weight of 0 does not cancel.
template <int kDh>
__device__ __forceinline__ void start_copy(uint32_t to, const bf16* from, int valid) {
#pragma unroll 2
  for (int c = static_cast<int>(threadIdx.x); c < kKvPageTokens * kDh / 8; c += kThreads)
    cp_async_16_or_zero(to + static_cast<uint32_t>(c) * 16, from + c * 8, c / 8 % kKvPageTokens < valid ? 16 : 0);
}

template <int kDh>
__global__ void __launch_bounds__(kThreads) paged_attention_kernel(const PagedAttention a) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  constexpr uint32_t kTileBytes = kDh / 64 * kBlock;
  pdl_launch();
  pdl_wait();
  const int stream = static_cast<int>(blockIdx.x), sequence = a.kv_heads.divide(stream);
  const TiledRows rows(a, sequence, stream - sequence * a.kv_heads.value);
  const int tile = rows.tiles() - 1 - static_cast<int>(blockIdx.y);
  if (tile < 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = tile * kTileRows + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  const int positions[2] = {rows.position(row), rows.position(row + 8)};
  const int tiles = rows.key_tiles(tile), whole = rows.whole_key_tiles(tile);
  const int cached = rows.cached();
  const int* pages = a.page_table + static_cast<int64_t>(rows.sequence) * a.max_pages;
  const auto start_tile = [&](int i) {
    const int64_t page = pages[i];
    const bf16* keys = a.kv + (page * 2 * a.kv_heads.value + rows.kv_head) * (kTileBytes / 2);
    const uint32_t to = shared_address(dynamic) + static_cast<uint32_t>(i % 2) * 2 * kTileBytes;
    start_copy<kDh>(to, keys, cached - i * kKvPageTokens);
    start_copy<kDh>(to + kTileBytes, keys + static_cast<int64_t>(a.kv_heads.value) * (kTileBytes / 2),
                    cached - i * kKvPageTokens);
  };

  start_tile(0);
  cp_async_commit();
  uint32_t q[kDh / 16][4];
  load_queries<kDh>(a, rows, row, q);
  arrange_queries<kDh>(q);
  OnlineSoftmax softmax;
  float o[kDh / 8][4] = {};
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) start_tile(i + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const uint32_t keys = shared_address(dynamic) + static_cast<uint32_t>(i % 2) * 2 * kTileBytes;
    float s[kKvPageTokens / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDh / 16; ++k)
#pragma unroll
      for (int n = 0; n < kKvPageTokens / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b, chunk_address(keys, 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        mma_16x8x16(s[2 * n], q[k], b[0], b[1]);
        mma_16x8x16(s[2 * n + 1], q[k], b[2], b[3]);
      }
    if (i >= whole) {
      const int last[2] = {positions[0] - i * kKvPageTokens, positions[1] - i * kKvPageTokens};
      mask_after(s, last, lane % 4 * 2);
    }
    float factor[2];
    if (softmax.step(s, a.scale, factor)) multiply_rows(o, factor);
#pragma unroll
    for (int k = 0; k < kKvPageTokens / 16; ++k) {
      uint32_t p[4];
      pack_weights(s, k, p);
#pragma unroll
      for (int n = 0; n < kDh / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, chunk_address(keys + kTileBytes, 16 * k + lane / 8 % 2 * 8 + lane % 8, 2 * n + lane / 16));
        mma_16x8x16(o[2 * n], p, b[0], b[1]);
        mma_16x8x16(o[2 * n + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  store_rows<kDh>(a, rows, row, softmax, o);
}

template <int kDh>
void launch(Stream stream, const PagedAttention& a, int64_t longest_q) {
  constexpr size_t kShared = 4 * kDh / 64 * kBlock;
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(paged_attention_kernel<kDh>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
          "paged_attention: shared memory");
    return true;
  }();
  (void)allowed;
  const int64_t tiles = (longest_q * a.group.value + kTileRows - 1) / kTileRows;
  const dim3 grid(static_cast<unsigned>(a.sequences * a.kv_heads.value), static_cast<unsigned>(tiles));
  launch_pdl("paged_attention", paged_attention_kernel<kDh>, grid, dim3(kThreads), kShared, stream, a);
}

}  // namespace

void paged_attention(Stream stream, const Tensor& q, const Tensor& kv_layer, const Paged& kv, float scale,
                     const Tensor& y) {
  const int64_t heads = q.dim(1), head_dim = q.dim(2), kv_heads = kv_layer.dim(2), sequences = kv.kv_lens.dim(0);
  CHECK(head_dim == 64 || head_dim == 128, "paged_attention: heads of {} values", head_dim);
  CHECK(heads % kv_heads == 0 && kv_layer.dim(1) == 2 && kv_layer.dim(3) == kKvPageTokens &&
            kv_layer.dim(4) == head_dim && y.dim(0) == q.dim(0) && y.numel() == q.numel(),
        "paged_attention: q {}, cache {}, y {}", q.describe(), kv_layer.describe(), y.describe());
  CHECK(kv.q_offsets.dim(0) == sequences + 1 && kv.page_table.dim(0) == sequences && q.contiguous() &&
        kv_layer.contiguous() && y.contiguous() && kv.page_table.contiguous() && scale > 0);
  if (q.dim(0) == 0) return;
  constexpr float kLog2E = 1.4426950408889634f;
  const PagedAttention a{.q = reinterpret_cast<const bf16*>(q.as<BFloat16>()),
                         .kv = reinterpret_cast<const bf16*>(kv_layer.as<BFloat16>()),
                         .y = reinterpret_cast<bf16*>(y.as<BFloat16>()),
                         .q_offsets = kv.q_offsets.as<int32_t>(),
                         .kv_lens = kv.kv_lens.as<int32_t>(),
                         .page_table = kv.page_table.as<int32_t>(),
                         .max_pages = static_cast<int>(kv.page_table.dim(1)),
                         .sequences = static_cast<int>(sequences),
                         .heads = static_cast<int>(heads),
                         .kv_heads = Divisor(kv_heads),
                         .group = Divisor(heads / kv_heads),
                         .scale = scale * kLog2E};
  if (head_dim == 64)
    launch<64>(stream, a, kv.longest_q);
  else if (use_hopper())
    paged_attention_hopper(stream, a, kv.longest_q);
  else
    launch<128>(stream, a, kv.longest_q);
}

}  // namespace saccade::cuda
