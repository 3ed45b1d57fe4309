// Attention of one query a sequence over its pages of the KV cache, by spans of pages, and the combination of spans.
//
// attend: q [B,H,Dh] and the cache -> per span and head the largest score, the sum of the weights and the weighted sum
// of values. One CTA an SM takes spans of as many pages as the others; pages stream by cp.async through a ring of
// stages (two pages of keys or of values, 32 KiB at Dh = 128). 4 Dh bytes a token and key head, 4 H/K Dh flops for
// them: bound by memory.
// A step of 128 tokens: each of eight warps scores 16 of them for up to 16 heads (mma m16n8k16, heads as rows), scores
// go through shared memory, then each warp weighs all tokens for 16 dimensions of the values.
// Scores, softmax and sums in float, weights in bf16 for the product.
// A span's length depends on the sequence's length alone, and so does the order of all sums.
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_rows.cuh"
#include "kernels/cuda/decode_spans.cuh"

namespace saccade::cuda::chain {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStages = 2;  // 82 KB at Dh = 128

template <int kDh>
constexpr int page_bytes() {
  return kKvPageTokens * kDh * 2;
}
template <int kDh>
struct Stage {
  static constexpr int kPageBytes = page_bytes<kDh>();
  static constexpr int kQueryBytes = kQueryRows * kDh * 2;
  static constexpr int kBytes = kStepPages * kPageBytes + kQueryBytes;
  static constexpr int kShared = kStages * kBytes + kQueryRows * kScorePitch * 4;
};

// Copies keys or values of a step; tokens behind the sequence's end become zeros.
template <int kDh>
__device__ void copy_pages(const Attention& a, const Cursor& c, const int* ids, bool value, uint32_t to) {
  constexpr int kChunks = kKvPageTokens * kDh / 8;
#pragma unroll
  for (int p = 0; p < kStepPages; ++p) {
    const int tokens = c.length - (c.page + p) * kKvPageTokens;
    const bf16* from =
        a.kv + ((static_cast<int64_t>(ids[p]) * 2 + value) * a.kv_heads + c.kv_head) * kKvPageTokens * kDh;
#pragma unroll
    for (int j = 0; j < kChunks / kThreads; ++j) {
      const int i = threadIdx.x + j * kThreads;
      cp_async_16_or_zero(to + p * page_bytes<kDh>() + 16 * i, from + 8 * i, i / 8 % 64 < tokens ? 16 : 0);
    }
  }
}

template <int kDh>
__device__ void copy_query(const Attention& a, const Cursor& c, uint32_t to) {
  const int group = a.group();
  const bf16* from = a.q + (static_cast<int64_t>(c.b) * a.heads + c.kv_head * group) * kDh;
  for (int i = threadIdx.x; i < group * kDh / 8; i += kThreads) {
    const int row = i / (kDh / 8), column = i % (kDh / 8) * 8;
    cp_async_16(
        to + (column / kBlockCols * kQueryRows * kBlockCols + static_cast<int>(swizzled(row, column % kBlockCols))) * 2,
        from + 8 * i);
  }
}

__device__ __forceinline__ void page_ids(const Attention& a, const Cursor& c, int* ids) {
  for (int p = 0; p < kStepPages; ++p)
    ids[p] = c.b < a.rows ? a.page_table[c.b * a.max_pages + min(c.page + p, c.pages - 1)] : 0;
}

template <int kDh>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const Attention a) {
  using S = Stage<kDh>;
  extern __shared__ __align__(1024) char raw[];
  __shared__ Lengths lengths;
  float* const scores = reinterpret_cast<float*>(raw + kStages * S::kBytes);
  const uint32_t base = shared_address(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.group();
  const int halves = group > 8 ? 2 : 1;
  pdl_launch();
  read_lengths(a, lengths, lane);
  __syncthreads();
  const Walk walk = {a, lengths};
  Cursor c = walk.first(lane), load = c;
  int ids[kStepPages];
  page_ids(a, load, ids);

  // Half-steps (keys, then values of a step) go through the ring; one group of copies each.
  int loaded = 0;
  const auto stage_of = [&](int half_step) { return base + half_step % kStages * S::kBytes; };
  const auto copy_next = [&] {
    const bool value = loaded % 2;
    if (!walk.done(load)) {
      copy_pages<kDh>(a, load, ids, value, stage_of(loaded));
      if (!value) copy_query<kDh>(a, load, stage_of(loaded) + kStepPages * S::kPageBytes);
      if (value) {
        walk.advance(load);
        if (!walk.done(load)) page_ids(a, load, ids);
      }
    }
    cp_async_commit();
    ++loaded;
  };
  pdl_wait();
  for (int i = 0; i < kStages; ++i) copy_next();

  float sums[2][4] = {};  // 16 heads x 16 dimensions
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int half_step = 0; !walk.done(c); half_step += 2) {
    cp_async_wait<kStages - 1>();
    __syncthreads();
    {
      const uint32_t stage = stage_of(half_step), query = stage + kStepPages * S::kPageBytes;
      const int first = warp * 16;  // token of the step
      float s[2][4] = {};
#pragma unroll
      for (int k = 0; k < kDh; k += 16) {
        uint32_t q4[4], k4[4];
        const int q_row = lane % 16, q_column = k + lane / 16 * 8;
        ldmatrix_x4(q4, query + 2 * (q_column / kBlockCols * kQueryRows * kBlockCols +
                                     static_cast<int>(swizzled(q_row, q_column % kBlockCols))));
        const int token = first % kKvPageTokens + lane / 16 * 8 + lane % 8, k_column = k + lane / 8 % 2 * 8;
        ldmatrix_x4(k4,
                    stage + first / kKvPageTokens * S::kPageBytes + 2 * static_cast<int>(kv_offset(token, k_column)));
        mma_16x8x16(s[0], q4, k4[0], k4[1]);
        mma_16x8x16(s[1], q4, k4[2], k4[3]);
      }
      const float scale = a.scale * 1.44269504088896341f;
      const int tokens = min(c.length, (c.page - c.in_span + c.span) * kKvPageTokens) - c.page * kKvPageTokens;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = first + 8 * j + lane % 4 * 2 + i % 2;
          scores[(lane / 4 + i / 2 * 8) * kScorePitch + token] = token < tokens ? s[j][i] * scale : -INFINITY;
        }
    }
    cp_async_wait<kStages - 2>();
    __syncthreads();
    copy_next();

    uint32_t weights[kStepTokens / 16][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half >= halves) continue;
      const float* row = scores + (lane / 4 + half * 8) * kScorePitch + lane % 4 * 2;
      float2 s[kStepTokens / 8];
      float highest = top[half];
#pragma unroll
      for (int k = 0; k < kStepTokens / 8; ++k) {
        s[k] = *reinterpret_cast<const float2*>(row + 8 * k);
        highest = fmaxf(highest, fmaxf(s[k].x, s[k].y));
      }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float shrink = exp2f(top[half] - highest);
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kStepTokens / 8; ++k) {
        const float x = exp2f(s[k].x - highest), y = exp2f(s[k].y - highest);
        sum += x + y;
        weights[k / 2][k % 2 * 2 + half] = pack_bf16(x, y);
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      top[half] = highest;
      total[half] = total[half] * shrink + sum;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        for (int i = 0; i < 2; ++i) sums[j][2 * half + i] *= shrink;
    }
    if (warp * 16 < kDh) {
      const uint32_t stage = stage_of(half_step + 1);
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; ++k) {
        uint32_t v4[4];
        const int token = k * 16 % kKvPageTokens + lane % 16, column = warp * 16 + lane / 16 * 8;
        ldmatrix_x4_trans(
            v4, stage + k * 16 / kKvPageTokens * S::kPageBytes + 2 * static_cast<int>(kv_offset(token, column)));
        mma_16x8x16(sums[0], weights[k], v4[0], v4[1]);
        mma_16x8x16(sums[1], weights[k], v4[2], v4[3]);
      }
    }
    if (walk.ends_span(c)) {
      const int64_t item = (static_cast<int64_t>(c.b) * a.kv_heads + c.kv_head) * a.max_spans + c.index;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int head = lane / 4 + half * 8;
        if (head < group) {
          if (warp * 16 < kDh)
            for (int j = 0; j < 2; ++j)
              *reinterpret_cast<float2*>(a.sums + (item * group + head) * kDh + warp * 16 + 8 * j + lane % 4 * 2) =
                  make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
          if (warp == 0 && lane % 4 == 0) a.stats[item * group + head] = {top[half], total[half]};
        }
        for (int j = 0; j < 2; ++j) sums[j][2 * half] = sums[j][2 * half + 1] = 0;
        top[half] = -INFINITY;
        total[half] = 0;
      }
    }
    walk.advance(c);
    __syncthreads();
    copy_next();
  }
  cp_async_wait<0>();
}

template <int kDh>
void launch_attend(Stream stream, const Attention& a) {
  constexpr int kShared = Stage<kDh>::kShared;
  static const bool ready = [] {
    check(cudaFuncSetAttribute(attend_kernel<kDh>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
          "shared memory");
    return true;
  }();
  (void)ready;
  launch_pdl("decode: attention", attend_kernel<kDh>, dim3(sm_count()), dim3(kThreads), kShared, stream, a);
}

}  // namespace

void attend(Stream stream, const Attention& a) {
  a.head_dim == 64 ? launch_attend<64>(stream, a) : launch_attend<128>(stream, a);
}

}  // namespace saccade::cuda::chain
