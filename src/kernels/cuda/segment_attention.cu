// Full attention inside segments (vision tower), for every device from sm_80 on: qkv [P,3,H,Dh] -> y [P,H*Dh].
//
// segment_tiles: a CTA of 4 warps has 64 query rows of one head, a warp 16 of them; keys and values come in tiles of 64
// rows, the next one by cp.async while one is used. Scores and sums in float (mma.sync m16n8k16), probabilities rounded
// to BF16 for their product with the values.
//  - Segments of at most 64 rows (windows) are one tile: q and k are turned on their way to shared memory, and nothing
//    is read twice. 8*P*H*Dh bytes; a window of Qwen's tower does 32 flops a byte, so memory bounds it.
//  - Longer ones are turned in place first (turn_rows), since every query tile reads all keys.
//
// Head sizes between those compiled are padded with zeros in shared memory.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/segment_attention.h"

namespace saccade::cuda {
namespace {

constexpr int kRows = kWindowRows;  // of a tile, queries as well as keys
constexpr int kThreads = 128;

struct Args {
  bf16* qkv;
  const float* cos_sin;  // null: nothing to turn
  const int* cu_seqlens;
  int heads, dim;
  int longest;       // longer segments are left alone
  float scale_log2;  // scale * log2(e)
  bf16* y;

  __device__ int64_t row_stride() const { return int64_t{3} * heads * dim; }
  __device__ const bf16* head(int which, int head, int64_t row) const {
    return qkv + row * row_stride() + (which * heads + head) * dim;
  }
};

// Tiles in shared memory: rows of kDim values and 16 bytes more, so that ldmatrix meets no bank twice.
template <int kDim>
constexpr int kPitch = kDim + 8;
template <int kDim>
constexpr int kTile = kRows* kPitch<kDim>;

// Copies the first `rows` rows of `dim` values; zeros elsewhere.
template <int kDim>
__device__ void copy_tile(bf16* tile, const bf16* from, int64_t stride, int rows, int dim) {
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int item = i * kThreads + threadIdx.x, row = item / kChunks, column = item % kChunks * 8;
    const bool there = row < rows && column < dim;
    cp_async_16_or_zero(shared_address(tile + row * kPitch<kDim> + column), there ? from + row * stride + column : from,
                        there ? 16 : 0);
  }
}

// The same for q and k, which are turned; in pieces of four pairs.
template <int kDim>
__device__ void turn_tiles(const Args& args, bf16* q_tile, bf16* k_tile, int head, int64_t first, int rows) {
  constexpr int kPieces = kDim / 8, kItems = kRows * kPieces / kThreads;
  const int half = args.dim / 2;
  uint2 q[kItems][2], k[kItems][2];
  float4 cos[kItems], sin[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int item = i * kThreads + threadIdx.x, row = item / kPieces, column = item % kPieces * 4;
    q[i][0] = q[i][1] = k[i][0] = k[i][1] = {0, 0};
    cos[i] = sin[i] = {0, 0, 0, 0};
    if (row < rows && column < half) {
      const bf16* from_q = args.head(0, head, first + row) + column;
      const bf16* from_k = args.head(1, head, first + row) + column;
      const float* turn = args.cos_sin + (first + row) * args.dim + column;
      q[i][0] = *reinterpret_cast<const uint2*>(from_q);
      q[i][1] = *reinterpret_cast<const uint2*>(from_q + half);
      k[i][0] = *reinterpret_cast<const uint2*>(from_k);
      k[i][1] = *reinterpret_cast<const uint2*>(from_k + half);
      cos[i] = *reinterpret_cast<const float4*>(turn);
      sin[i] = *reinterpret_cast<const float4*>(turn + half);
    }
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int item = i * kThreads + threadIdx.x, row = item / kPieces, piece = item % kPieces;
    // Pieces past the half hold zeros and fill the columns past the head.
    const int low = piece * 4 < half ? piece * 4 : piece * 8, high = piece * 4 < half ? half + low : low + 4;
    turn_four(q[i][0], q[i][1], cos[i], sin[i]);
    turn_four(k[i][0], k[i][1], cos[i], sin[i]);
    const int at = row * kPitch<kDim>;
    *reinterpret_cast<uint2*>(q_tile + at + low) = q[i][0];
    *reinterpret_cast<uint2*>(q_tile + at + high) = q[i][1];
    *reinterpret_cast<uint2*>(k_tile + at + low) = k[i][0];
    *reinterpret_cast<uint2*>(k_tile + at + high) = k[i][1];
  }
}

// scores = q k^T of a warp's 16 rows and 64 keys.
template <int kDim>
__device__ void score(float (&scores)[8][4], const uint32_t (&q)[kDim / 16][4], const bf16* k_tile, int lane) {
#pragma unroll
  for (auto& s : scores) s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step)
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // of key octets
      uint32_t k[4];
      const int key = pair * 16 + lane / 16 * 8 + lane % 8, column = step * 16 + lane / 8 % 2 * 8;
      ldmatrix_x4(k, shared_address(k_tile + key * kPitch<kDim> + column));
      mma_16x8x16(scores[2 * pair], q[step], k[0], k[1]);
      mma_16x8x16(scores[2 * pair + 1], q[step], k[2], k[3]);
    }
}

// sums += p v, with p the scores rounded.
template <int kDim>
__device__ void weigh(float (&sums)[kDim / 8][4], const float (&p)[8][4], const bf16* v_tile, int lane) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {  // 16 keys
    const float(&low)[4] = p[2 * step];
    const float(&high)[4] = p[2 * step + 1];
    const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                           pack_bf16(high[2], high[3])};
#pragma unroll
    for (int pair = 0; pair < kDim / 16; ++pair) {  // of column octets
      uint32_t v[4];
      const int key = step * 16 + lane % 16, column = pair * 16 + lane / 16 * 8;
      ldmatrix_x4_trans(v, shared_address(v_tile + key * kPitch<kDim> + column));
      mma_16x8x16(sums[2 * pair], a, v[0], v[1]);
      mma_16x8x16(sums[2 * pair + 1], a, v[2], v[3]);
    }
  }
}

// Grid: (segments * heads, tiles of the longest segment). Shared: q tile, then a k and a v tile for each of one or two
// stages.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 80 ? 4 : 2) segment_tiles(const Args args) {
  extern __shared__ __align__(128) bf16 shared[];
  pdl_wait();
  pdl_launch();
  const int head = blockIdx.x % args.heads, segment = blockIdx.x / args.heads;
  const int begin = args.cu_seqlens[segment], length = args.cu_seqlens[segment + 1] - begin;
  const int first = blockIdx.y * kRows, rows = min(kRows, length - first), tiles = (length + kRows - 1) / kRows;
  if (rows <= 0 || length > args.longest) return;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  bf16* const q_tile = shared;
  const auto k_tile = [&](int tile) { return shared + (1 + tile % 2 * 2) * kTile<kDim>; };
  const auto v_tile = [&](int tile) { return k_tile(tile) + kTile<kDim>; };
  const auto copy = [&](int which, bf16* to, int row) {
    copy_tile<kDim>(to, args.head(which, head, begin + row), args.row_stride(), min(kRows, length - row), args.dim);
  };

  copy(2, v_tile(0), 0);
  if (args.cos_sin) {
    turn_tiles<kDim>(args, q_tile, k_tile(0), head, begin, rows);
  } else {
    copy(0, q_tile, first);
    copy(1, k_tile(0), 0);
  }
  cp_async_commit();

  uint32_t q[kDim / 16][4];
  float sums[kDim / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      copy(1, k_tile(tile + 1), (tile + 1) * kRows);
      copy(2, v_tile(tile + 1), (tile + 1) * kRows);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (tile == 0) {
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step)
        ldmatrix_x4(q[step],
                    shared_address(q_tile + (warp_row + lane % 16) * kPitch<kDim> + step * 16 + lane / 16 * 8));
    }
    float scores[8][4];
    score<kDim>(scores, q, k_tile(tile), lane);

    const int keys = length - tile * kRows;
    if (keys < kRows) {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= keys) scores[i / 4][i % 4] = -INFINITY;
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // rows lane / 4 and lane / 4 + 8
      float top = most[r];
#pragma unroll
      for (auto& s : scores) top = fmaxf(top, fmaxf(s[2 * r], s[2 * r + 1]));
      top = quad_max(top);
      const float shrink = exp2_approx((most[r] - top) * args.scale_log2);
      most[r] = top;
      base[r] = top * args.scale_log2;
      total[r] *= shrink;
#pragma unroll
      for (auto& sum : sums) sum[2 * r] *= shrink, sum[2 * r + 1] *= shrink;
    }
#pragma unroll
    for (auto& s : scores)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[i] = exp2_approx(s[i] * args.scale_log2 - base[i / 2]);
        total[i / 2] += s[i];
      }
    weigh<kDim>(sums, scores, v_tile(tile), lane);
    __syncthreads();
  }

  // Through the warp's own rows of the q tile, so that memory is written in 16-byte pieces.
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float share = 1 / quad_sum(total[r]);
    bf16* to = q_tile + (warp_row + lane / 4 + r * 8) * kPitch<kDim> + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i)
      *reinterpret_cast<uint32_t*>(to + i * 8) = pack_bf16(sums[i][2 * r] * share, sums[i][2 * r + 1] * share);
  }
  __syncwarp();
  const int chunks = args.dim / 8;
  for (int item = lane; item < 16 * chunks; item += 32) {
    const int row = warp_row + item / chunks, column = item % chunks * 8;
    if (row >= rows) break;
    bf16* to = args.y + (int64_t{begin + first + row} * args.heads + head) * args.dim + column;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(q_tile + row * kPitch<kDim> + column);
  }
}

// Turns q and k in place: a thread has four pairs of a head.
__global__ void __launch_bounds__(256) turn_rows(const Args args, int64_t count) {
  pdl_wait();
  pdl_launch();
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= count) return;
  const int half = args.dim / 2, pieces = half / 4, column = static_cast<int>(item % pieces) * 4;
  const int64_t row = item / pieces / (2 * args.heads);
  const int head = static_cast<int>(item / pieces % (2 * args.heads));  // q heads, then k heads
  auto* low = reinterpret_cast<uint2*>(args.qkv + row * args.row_stride() + head * args.dim + column);
  auto* high = reinterpret_cast<uint2*>(reinterpret_cast<bf16*>(low) + half);
  const float* turn = args.cos_sin + row * args.dim + column;
  const float4 cos = *reinterpret_cast<const float4*>(turn), sin = *reinterpret_cast<const float4*>(turn + half);
  uint2 a = *low, b = *high;
  turn_four(a, b, cos, sin);
  *low = a;
  *high = b;
}

template <int kDim>
void launch_tiles(Stream stream, const Args& args, int64_t segments, int64_t longest) {
  const int tiles = static_cast<int>((longest + kRows - 1) / kRows);
  const size_t shared = (tiles > 1 ? 5 : 3) * kTile<kDim> * sizeof(bf16);
  static const cudaError_t raised =
      cudaFuncSetAttribute(segment_tiles<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, 5 * kTile<kDim> * 2);
  check(raised, "segment_attention");
  launch_pdl("segment_attention", segment_tiles<kDim>, dim3(static_cast<unsigned>(segments * args.heads), tiles),
             dim3(kThreads), shared, stream, args);
}

}  // namespace

void segment_attention(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& cu_seqlens,
                       int64_t longest, float scale, const Tensor& y) {
  const int64_t rows = qkv.dim(0), heads = qkv.dim(2), dim = qkv.dim(3), segments = cu_seqlens.dim(0) - 1;
  CHECK(qkv.dtype == DType::kBF16 && qkv.dim(1) == 3 && dim % 8 == 0 && dim <= 128, "qkv is {}", qkv.describe());
  CHECK(!cos_sin || cos_sin.numel() == rows * dim, "cos_sin is {}", cos_sin.describe());
  CHECK(y.numel() == rows * heads * dim, "y is {}", y.describe());
  CHECK(segments * longest >= rows, "{} segments of {} rows, at most {}", segments, rows, longest);
  if (rows == 0) return;
  // Which kernel has a segment is a matter of its own length, so that its results do not depend on other segments.
  if (use_hopper() && longest > kWindowRows && segment_flash_fits(qkv)) {
    segment_attention_flash(stream, qkv, cos_sin, cu_seqlens, longest, scale, y);
    if (segments == 1 && rows > kWindowRows) return;
    longest = kWindowRows;
  }
  if (use_hopper() && longest <= kWindowRows && segment_windows_fit(qkv))
    return segment_attention_windows(stream, qkv, cos_sin, cu_seqlens, scale, y);

  Args args = {};
  args.qkv = static_cast<bf16*>(qkv.data);
  args.cos_sin = static_cast<const float*>(cos_sin.data);
  args.cu_seqlens = cu_seqlens.as<int32_t>();
  args.heads = static_cast<int>(heads);
  args.dim = static_cast<int>(dim);
  args.longest = static_cast<int>(longest);
  args.scale_log2 = scale * kLog2E;
  args.y = static_cast<bf16*>(y.data);
  if (longest > kRows && args.cos_sin) {
    const int64_t pieces = rows * 2 * heads * (dim / 8);
    launch_pdl("segment_attention: rope", turn_rows, dim3(static_cast<unsigned>((pieces + 255) / 256)), dim3(256), 0,
               stream, args, pieces);
    args.cos_sin = nullptr;
  }
  if (dim <= 32) return launch_tiles<32>(stream, args, segments, longest);
  if (dim <= 80) return launch_tiles<80>(stream, args, segments, longest);
  launch_tiles<128>(stream, args, segments, longest);
}

}  // namespace saccade::cuda
