// Operations on rows. All of them move each byte once and do next to no arithmetic, so memory bounds them: every access
// is 16 bytes of a thread, neighbours together, and a grid covers the whole device. Formulas and roundings are those of
// kernels/cpu/rows.cpp; nvcc's default IEEE division, square root and subnormals are relied on.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.h"

namespace saccade::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;  // bf16 values in 16 bytes

union Vector {
  uint4 bits;
  __nv_bfloat162 pair[kVector / 2];
  bf16 value[kVector];
};

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

// Whole warps, no more than `most` threads, that `items` of a CTA keep busy.
unsigned threads_for(int64_t items, int64_t most) {
  return static_cast<unsigned>(std::min(most, (items + 31) / 32 * 32));
}

dim3 grid_of(int64_t items) { return dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)); }

__device__ __forceinline__ int64_t global_thread() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

// y[i] = x[index[i]]: a CTA copies a row of `units` of type Unit. Bytes: two of each in y.
template <class Unit>
__global__ void __launch_bounds__(kThreads) gather_kernel(const Unit* x, const int32_t* index, Unit* y, int64_t units) {
  pdl_launch();
  pdl_wait();
  const Unit* from = x + index[blockIdx.x] * units;
  Unit* to = y + blockIdx.x * units;
  for (int64_t i = threadIdx.x; i < units; i += blockDim.x) to[i] = from[i];
}

void gather(const char* op, Stream stream, const Tensor& x, const Tensor& index, const Tensor& y) {
  const int64_t row_bytes = x.dim(1) * static_cast<int64_t>(dtype_size(x.dtype)), rows = index.dim(0);
  CHECK(y.dim(0) == rows && y.dim(1) == x.dim(1) && y.dtype == x.dtype, "{}: y is {}", op, y.describe());
  if (y.numel() == 0) return;
  const auto run = [&]<class Unit>(Unit) {
    const int64_t units = row_bytes / static_cast<int64_t>(sizeof(Unit));
    launch_pdl(op, gather_kernel<Unit>, dim3(static_cast<unsigned>(rows)), dim3(threads_for(units, kThreads)), 0,
               stream, static_cast<const Unit*>(x.data), index.as<int32_t>(), static_cast<Unit*>(y.data), units);
  };
  row_bytes % 16 == 0 ? run(uint4{}) : run(uint8_t{});
}

// A CTA for each row, a vector in the registers of each thread between the sum and the product. Bytes: x and y once; w
// stays in L2. The sum of squares is in float, in an order that depends on D alone.
constexpr int kMaxNormThreads = 1024;

__global__ void __launch_bounds__(kMaxNormThreads, 2)
    rms_norm_kernel(const uint4* x, const uint4* w, float eps, uint4* y, int vectors) {
  pdl_launch();
  pdl_wait();
  const int i = static_cast<int>(threadIdx.x), lane = i % 32, warps = static_cast<int>(blockDim.x) / 32;
  const int64_t at = int64_t{blockIdx.x} * vectors + i;
  Vector v = {}, weight = {};
  if (i < vectors) {
    v.bits = x[at];
    weight.bits = __ldg(w + i);
  }
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float each = __bfloat162float(v.value[j]);
    squares = fmaf(each, each, squares);
  }
  for (int other = 16; other > 0; other /= 2) squares += __shfl_xor_sync(~0u, squares, other);
  __shared__ float of_warp[kMaxNormThreads / 32];
  if (lane == 0) of_warp[i / 32] = squares;
  __syncthreads();
  squares = lane < warps ? of_warp[lane] : 0;
  for (int other = 16; other > 0; other /= 2) squares += __shfl_xor_sync(~0u, squares, other);
  const float scale = 1 / sqrtf(squares / static_cast<float>(vectors * kVector) + eps);
  if (i >= vectors) return;
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    v.value[j] = __float2bfloat16_rn(rounded(__bfloat162float(v.value[j]) * scale) * __bfloat162float(weight.value[j]));
  y[at] = v.bits;
}

// x * Phi(x) with the approximation of erfc of kernels/cpu/functions.h, which keeps the relative precision of the left
// tail: erfcf would take longer than the memory.
__device__ __forceinline__ bf16 gelu_of(bf16 value) {
  constexpr float kPolynomial[] = {-1.26550722f, 0.999916315f, 0.374983639f, 0.0930531397f, -0.177782640f,
                                   0.268727064f, -1.13101268f, 1.49185395f,  -0.826409101f, 0.172177628f};
  const float x = __bfloat162float(value), z = fminf(17.0f, fabsf(x) * 0.70710678f);
  const float t = __fdividef(1.0f, fmaf(z, 0.5f, 1.0f));
  float p = kPolynomial[9];
#pragma unroll
  for (int i = 8; i >= 0; --i) p = fmaf(p, t, kPolynomial[i]);
  const float tail = 0.5f * t * __expf(p - z * z);
  return __float2bfloat16_rn(x * (x < 0 ? tail : 1 - tail));
}

// One vector a thread, the last one perhaps short.
__global__ void __launch_bounds__(kThreads) gelu_kernel(const bf16* x, bf16* y, int64_t count) {
  pdl_launch();
  pdl_wait();
  const int64_t i = global_thread() * kVector;
  if (i + kVector <= count) {
    Vector v;
    v.bits = *reinterpret_cast<const uint4*>(x + i);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v.value[j] = gelu_of(v.value[j]);
    *reinterpret_cast<uint4*>(y + i) = v.bits;
  } else {
    for (int64_t j = i; j < count; ++j) y[j] = gelu_of(x[j]);
  }
}

// Frequencies come from the host, where pow is that of the CPU's kernels.
constexpr int kMaxHalf = 128;
struct Turns {
  float frequency[kMaxHalf];
  uint8_t axis[kMaxHalf];
};

// y[t] = cos | sin of positions[axis[j]][t] * frequency[j]: one frequency of one token a thread. The angle is a float
// product, its functions are taken in double.
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const int32_t* positions, const __grid_constant__ Turns turns, int half, int64_t tokens,
                      bool round, float* y) {
  pdl_launch();
  pdl_wait();
  const int64_t i = global_thread();
  if (i >= tokens * half) return;
  const int64_t t = i / half;
  const int j = static_cast<int>(i - t * half);
  const float angle = static_cast<float>(positions[turns.axis[j] * tokens + t]) * turns.frequency[j];
  double sine, cosine;
  sincos(static_cast<double>(angle), &sine, &cosine);
  const float c = static_cast<float>(cosine), s = static_cast<float>(sine);
  y[t * 2 * half + j] = round ? rounded(c) : c;
  y[t * 2 * half + half + j] = round ? rounded(s) : s;
}

float inverse_frequency(double theta, int64_t j, int64_t count) {
  return 1.0F / static_cast<float>(std::pow(theta, static_cast<double>(j) / static_cast<double>(count)));
}

void write_table(const char* op, Stream stream, const Tensor& positions, const Turns& turns, bool round,
                 const Tensor& y) {
  const int64_t tokens = y.dim(0), half = y.dim(2);
  CHECK(positions.dim(1) == tokens, "{}: positions {} for {}", op, positions.describe(), y.describe());
  if (tokens == 0) return;
  launch_pdl(op, rope_table_kernel, grid_of(tokens * half), dim3(kThreads), 0, stream, positions.as<int32_t>(), turns,
             half, tokens, round, y.as<float>());
}

// A thread takes 16 neighbouring places of one head of one token: in paired order these are eight values of the first
// half and the eight of the second half that turn with them. Heads q | k | v. Bytes: qkv once read and once written.
__global__ void __launch_bounds__(kThreads)
    qkv_rope_append_kernel(const bf16* qkv, const float* cos_sin, const int32_t* slots, bf16* kv_layer, bf16* q,
                           int heads, int kv_heads, int dim, int64_t count) {
  pdl_launch();
  pdl_wait();
  const int64_t i = global_thread();
  if (i >= count) return;
  const uint32_t chunks = dim / 16, head_row = static_cast<uint32_t>(i) / chunks, all_heads = heads + 2 * kv_heads;
  const int chunk = static_cast<int>(i - int64_t{head_row} * chunks), head = static_cast<int>(head_row % all_heads);
  const int64_t t = head_row / all_heads;
  Vector a, b;
  a.bits = *reinterpret_cast<const uint4*>(qkv + i * 16);
  b.bits = *reinterpret_cast<const uint4*>(qkv + i * 16 + kVector);
  if (head < heads + kv_heads) {
    const float* c = cos_sin + t * dim + chunk * kVector;
    const float* s = c + dim / 2;
#pragma unroll
    for (int j = 0; j < kVector; j += 4) {
      const float4 c4 = *reinterpret_cast<const float4*>(c + j), s4 = *reinterpret_cast<const float4*>(s + j);
      const float cosine[] = {c4.x, c4.y, c4.z, c4.w}, sine[] = {s4.x, s4.y, s4.z, s4.w};
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const float first = __bfloat162float(a.value[j + l]), second = __bfloat162float(b.value[j + l]);
        a.value[j + l] = __float2bfloat16_rn(rounded(first * cosine[l]) - rounded(second * sine[l]));
        b.value[j + l] = __float2bfloat16_rn(rounded(second * cosine[l]) + rounded(first * sine[l]));
      }
    }
  }
  bf16 *to = q + (t * heads + head) * dim + chunk * 16, *to_b = to + kVector;
  if (head >= heads) {
    const int slot = slots[t];
    bf16* block = kv_layer + (int64_t{slot / kKvPageTokens} * 2 * kv_heads + head - heads) * kKvPageTokens * dim;
    to = block + kv_offset(slot % kKvPageTokens, chunk * 16);
    to_b = block + kv_offset(slot % kKvPageTokens, chunk * 16 + kVector);
  }
  *reinterpret_cast<uint4*>(to) = a.bits;
  *reinterpret_cast<uint4*>(to_b) = b.bits;
}

// A CTA moves 16 rows x kStripBlocks blocks; 128 threads take the 16 x 8 chunks of a block, so that a warp reads and
// writes whole 128-byte lines of four rows. Unit: what rows of w are aligned to. Bytes: w read, strips written.
constexpr int kStripBlocks = 8;

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    to_strips_kernel(const Unit* w, int64_t n, int64_t k, int64_t first, int64_t group, int64_t blocks, uint4* out) {
  pdl_launch();
  pdl_wait();
  constexpr int kUnits = static_cast<int>(sizeof(uint4) / sizeof(Unit)), kWide = kVector / kUnits;  // values in a Unit
  constexpr int kStep = kThreads / 128;
  const int64_t row = int64_t{blockIdx.x} * kStripRows + threadIdx.x / 8 % kStripRows;
  if (row >= n) return;
  const int64_t from = row + first;
  int64_t to = from;
  if (group > 0) {
    const int64_t half = group / 2, place = from % group;
    to = from - place + paired_row(place % half, place >= half);
  }
  const int chunk = static_cast<int>(threadIdx.x) % 8;
  const int64_t block0 = int64_t{blockIdx.y} * kStripBlocks + threadIdx.x / 128;
  union {
    uint4 bits;
    Unit unit[kUnits];
  } v[kStripBlocks / kStep];
#pragma unroll
  for (int b = 0; b < kStripBlocks / kStep; ++b) {
    const int64_t column = (block0 + b * kStep) * kBlockCols + chunk * kVector;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) v[b].unit[u] = column + u * kWide < k ? w[(row * k + column) / kWide + u] : Unit{};
  }
#pragma unroll
  for (int b = 0; b < kStripBlocks / kStep; ++b) {
    const int64_t block = block0 + b * kStep;
    if (block < blocks) out[strip_offset(to, block * kBlockCols + chunk * kVector, blocks) / kVector] = v[b].bits;
  }
}

// A thread four numbers, so that all reads of the host's memory are under way at once.
__global__ void __launch_bounds__(kThreads) fetch_kernel(const int4* from, int4* to, int64_t count, const int32_t* ids,
                                                         int64_t id_count, const int32_t* chosen) {
  pdl_launch();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int4 v = i < count ? from[i] : int4{};
  pdl_wait();
  if (i >= count) return;
  int32_t four[] = {v.x, v.y, v.z, v.w};
  const int64_t first = reinterpret_cast<const int32_t*>(to + i) - ids;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (first + j >= 0 && first + j < id_count && four[j] < 0) four[j] = max(chosen[-1 - four[j]], 0);
  to[i] = {four[0], four[1], four[2], four[3]};
}

}  // namespace

void fetch(Stream stream, const Tensor& from, const Tensor& to, const Tensor& ids, const Tensor& chosen) {
  const int64_t count = to.numel() / 4;
  CHECK(from.numel() == 4 * count && to.numel() == 4 * count, "fetch: {} from {}", to.describe(), from.describe());
  if (count == 0) return;
  launch_pdl("fetch", fetch_kernel, grid_of(count), dim3(kThreads), 0, stream,
             reinterpret_cast<const int4*>(from.as<int32_t>()), reinterpret_cast<int4*>(to.as<int32_t>()), count,
             ids.as<int32_t>(), ids.numel(), chosen.as<int32_t>());
}

void embed(Stream stream, const Tensor& table, const Tensor& ids, const Tensor& y) {
  gather("embed", stream, table, ids, y);
}

void gather_rows(Stream stream, const Tensor& x, const Tensor& index, const Tensor& y) {
  gather("gather_rows", stream, x, index, y);
}

void rms_norm(Stream stream, const Tensor& x, const Tensor& w, float eps, const Tensor& y) {
  const int64_t rows = x.dim(0), d = x.dim(1), vectors = d / kVector;
  CHECK(w.dim(0) == d && y.numel() == x.numel(), "rms_norm: x {}, w {}", x.describe(), w.describe());
  if (d % kVector != 0 || vectors > kMaxNormThreads)
    fail("rms_norm: expected a multiple of {} up to {} columns, found {}", kVector, kVector * kMaxNormThreads, d);
  if (rows == 0) return;
  launch_pdl("rms_norm", rms_norm_kernel, dim3(static_cast<unsigned>(rows)),
             dim3(threads_for(vectors, kMaxNormThreads)), 0, stream, reinterpret_cast<const uint4*>(x.as<BFloat16>()),
             reinterpret_cast<const uint4*>(w.as<BFloat16>()), eps, reinterpret_cast<uint4*>(y.as<BFloat16>()),
             vectors);
}

void gelu(Stream stream, const Tensor& x, const Tensor& y) {
  const int64_t count = x.numel();
  CHECK(y.numel() == count, "gelu: x {}, y {}", x.describe(), y.describe());
  if (count == 0) return;
  launch_pdl("gelu", gelu_kernel, grid_of((count + kVector - 1) / kVector), dim3(kThreads), 0, stream,
             reinterpret_cast<const bf16*>(x.as<BFloat16>()), reinterpret_cast<bf16*>(y.as<BFloat16>()), count);
}

void rope_table(Stream stream, const Tensor& positions, std::span<const int64_t> sections, double theta,
                const Tensor& y) {
  const int64_t half = y.dim(2);
  if (half > kMaxHalf) fail("rope_table: at most {} frequencies, found {}", kMaxHalf, half);
  Turns turns = {};
  int64_t j = 0;
  for (size_t a = 0; a < sections.size(); ++a)
    for (int64_t end = j + sections[a]; j < end && j < half; ++j) turns.axis[j] = static_cast<uint8_t>(a);
  CHECK(j == half, "rope_table: sections cover {} of {} frequencies", j, half);
  for (j = 0; j < half; ++j) turns.frequency[j] = inverse_frequency(theta, j, half);
  write_table("rope_table", stream, positions, turns, true, y);
}

void vision_rope_table(Stream stream, const Tensor& positions, double theta, const Tensor& y) {
  const int64_t half = y.dim(2), quarter = half / 2;
  if (half > kMaxHalf) fail("vision_rope_table: at most {} frequencies, found {}", kMaxHalf, half);
  Turns turns = {};
  for (int64_t j = 0; j < half; ++j) {
    turns.frequency[j] = inverse_frequency(theta, j % quarter, quarter);
    turns.axis[j] = j < quarter ? 0 : 1;
  }
  write_table("vision_rope_table", stream, positions, turns, false, y);
}

void qkv_rope_append(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& kv_layer, const Tensor& q) {
  const int64_t tokens = qkv.dim(0), heads = q.dim(1), dim = q.dim(2), kv_heads = kv_layer.dim(2);
  CHECK(dim % kBlockCols == 0 && qkv.dim(1) == (heads + 2 * kv_heads) * dim && kv_layer.dim(3) == kKvPageTokens,
        "qkv_rope_append: qkv {}, q {}, kv {}", qkv.describe(), q.describe(), kv_layer.describe());
  if (tokens == 0) return;
  const int64_t count = qkv.numel() / 16;
  CHECK(count <= UINT32_MAX, "qkv_rope_append: qkv {}", qkv.describe());
  launch_pdl("qkv_rope_append", qkv_rope_append_kernel, grid_of(count), dim3(kThreads), 0, stream,
             reinterpret_cast<const bf16*>(qkv.as<BFloat16>()), cos_sin.as<float>(), slots.as<int32_t>(),
             reinterpret_cast<bf16*>(kv_layer.as<BFloat16>()), reinterpret_cast<bf16*>(q.as<BFloat16>()), heads,
             kv_heads, dim, count);
}

void to_strips(Stream stream, const Tensor& w, int64_t first, int64_t group, const Tensor& out) {
  const int64_t n = w.dim(0), k = w.dim(1), blocks = blocks_of(k);
  CHECK(group % 2 == 0 && out.dim(1) == blocks && first + n <= out.dim(0) * kStripRows, "to_strips: w {}, out {}",
        w.describe(), out.describe());
  if (w.numel() == 0) return;
  const dim3 grid(static_cast<unsigned>(strips_of(n)),
                  static_cast<unsigned>((blocks + kStripBlocks - 1) / kStripBlocks));
  auto* to = reinterpret_cast<uint4*>(out.as<BFloat16>());
  const auto run = [&]<class Unit>(Unit) {
    launch_pdl("to_strips", to_strips_kernel<Unit>, grid, dim3(kThreads), 0, stream,
               reinterpret_cast<const Unit*>(w.as<BFloat16>()), n, k, first, group, blocks, to);
  };
  const bool wide = k % kVector == 0 && reinterpret_cast<uintptr_t>(w.data) % sizeof(uint4) == 0;
  wide ? run(uint4{}) : run(uint16_t{});
}

}  // namespace saccade::cuda
