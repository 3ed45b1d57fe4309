// What stands between the matmuls of decode_chained: sums of their partial results and the epilogues of whole rows.
// Bound by latency: a few hundred KB from the L2 cache. Sums in the order of the CTAs that made them.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_chain.cuh"
#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda::chain {
namespace {

template <class V>
__device__ __forceinline__ V add(V a, V b);
template <>
__device__ __forceinline__ float2 add(float2 a, float2 b) {
  return {a.x + b.x, a.y + b.y};
}
template <>
__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

constexpr int kAtOnce = 12;  // loads in flight

template <class V>
__device__ __forceinline__ V sum_partials(const Partials& p, int row, int n) {
  const float* from = p.of(row, n);
  const int64_t step = p.step();
  const int count = p.split.count(n / kGroupRows);
  V sum = {};
  for (int i = 0; i < count; i += kAtOnce) {
    V parts[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      parts[j] = i + j < count ? *reinterpret_cast<const V*>(from + (i + j) * step) : V{};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum = add(sum, parts[j]);
  }
  return sum;
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

struct alignas(8) Four {
  bf16 v[4];
};

// A CTA a row, four columns a thread at a time.
__global__ void __launch_bounds__(1024) add_norm_kernel(const Norm a) {
  extern __shared__ Four shared[];
  __shared__ float warp_sums[32];
  Four *const row = shared, *const weights = shared + a.width / 4;
  pdl_launch();
  for (int n = threadIdx.x; n < a.width / 4; n += blockDim.x) weights[n] = reinterpret_cast<const Four*>(a.w)[n];
  pdl_wait();
  bf16* h = a.h + static_cast<int64_t>(blockIdx.x) * a.width;
  float squares = 0;
  for (int n = threadIdx.x * 4; n < a.width; n += blockDim.x * 4) {
    Four values = *reinterpret_cast<const Four*>(h + n);
    if (a.partials.data != nullptr) {
      const float4 sum = sum_partials<float4>(a.partials, blockIdx.x, n);
      const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
      for (int i = 0; i < 4; ++i) values.v[i] = __float2bfloat16(__bfloat162float(values.v[i]) + rounded(sums[i]));
      *reinterpret_cast<Four*>(h + n) = values;
    }
    row[n / 4] = values;
    for (int i = 0; i < 4; ++i) {
      const float v = __bfloat162float(values.v[i]);
      squares += v * v;
    }
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) total += warp_sums[i];
  const float scale = 1 / sqrtf(total / static_cast<float>(a.width) + a.eps);
  for (int n = threadIdx.x * 4; n < a.width; n += blockDim.x * 4) {
    const Four w = weights[n / 4];
    Four values = row[n / 4];
    for (int i = 0; i < 4; ++i)
      values.v[i] = __float2bfloat16(rounded(__bfloat162float(values.v[i]) * scale) * __bfloat162float(w.v[i]));
    *reinterpret_cast<Four*>(a.x + tile_offset(blockIdx.x, n)) = values;
  }
}

struct alignas(4) Two {
  bf16 v[2];
};

// A warp a head of q, k or v of one row; two pairs of values a lane.
__global__ void __launch_bounds__(128) rope_append_kernel(const Attention a, const Partials qkv, const bf16* bias) {
  pdl_launch();
  const int heads = a.heads + 2 * a.kv_heads, half = a.head_dim / 2;
  const int item = blockIdx.x * 4 + threadIdx.x / 32, b = item / heads, head = item % heads;
  const int i = threadIdx.x % 32 * 2;  // of head_dim / 2, which is 64 at most
  if (b >= a.rows || i >= half) return pdl_wait();
  const int kv_head = (head - a.heads) % a.kv_heads;
  const bool value = head >= a.heads + a.kv_heads;
  const int slot = a.slots[b];
  const float* cos_sin = a.cos_sin + static_cast<int64_t>(b) * a.head_dim + i;
  const float2 c2 = *reinterpret_cast<const float2*>(cos_sin), s2 = *reinterpret_cast<const float2*>(cos_sin + half);
  bf16* const cache = a.kv + ((static_cast<int64_t>(slot / kKvPageTokens) * 2 + value) * a.kv_heads + kv_head) *
                                 kKvPageTokens * a.head_dim;
  // Places of the pairs' halves; of v, whose order is plain, simply two places.
  const int places[2] = {static_cast<int>(paired_row(i, 0)), static_cast<int>(paired_row(i, 1))};
  const int n = head * a.head_dim;
  Two add[2] = {};
  if (bias != nullptr)
    for (int j = 0; j < 2; ++j) add[j] = *reinterpret_cast<const Two*>(bias + n + places[j]);
  pdl_wait();
  float2 x[2];
  for (int j = 0; j < 2; ++j) x[j] = sum_partials<float2>(qkv, b, n + places[j]);
  for (int j = 0; j < 2; ++j) {
    x[j].x = rounded(x[j].x + __bfloat162float(add[j].v[0]));
    x[j].y = rounded(x[j].y + __bfloat162float(add[j].v[1]));
  }
  const auto turn = [](float a, float b, float c, float s) {
    return __float2bfloat16(rounded(a * c) + rounded(b * s));
  };
  Two y[2];
  if (value) {
    for (int j = 0; j < 2; ++j) y[j] = {__float2bfloat16(x[j].x), __float2bfloat16(x[j].y)};
  } else {
    y[0] = {turn(x[0].x, -x[1].x, c2.x, s2.x), turn(x[0].y, -x[1].y, c2.y, s2.y)};
    y[1] = {turn(x[1].x, x[0].x, c2.x, s2.x), turn(x[1].y, x[0].y, c2.y, s2.y)};
  }
  for (int j = 0; j < 2; ++j) {
    bf16* to = head < a.heads ? a.q + (static_cast<int64_t>(b) * a.heads + head) * a.head_dim + places[j]
                              : cache + kv_offset(slot % kKvPageTokens, places[j]);
    *reinterpret_cast<Two*>(to) = y[j];
  }
}

}  // namespace

void add_norm(Stream stream, const Norm& a) {
  const dim3 threads(std::min(1024, (a.width / 4 + 31) / 32 * 32));
  const size_t shared = 2 * static_cast<size_t>(a.width) * sizeof(bf16);
  if (a.partials.data == nullptr) {  // the first of a step: after everything before it
    add_norm_kernel<<<a.rows, threads, shared, stream>>>(a);
    check_launch("decode: norm");
  } else {
    launch_pdl("decode: norm", add_norm_kernel, dim3(a.rows), threads, shared, stream, a);
  }
}

void rope_append(Stream stream, const Attention& a, const Partials& qkv, const bf16* bias) {
  const int items = a.rows * (a.heads + 2 * a.kv_heads);
  launch_pdl("decode: rope", rope_append_kernel, dim3((items + 3) / 4), dim3(128), 0, stream, a, qkv, bias);
}

}  // namespace saccade::cuda::chain
