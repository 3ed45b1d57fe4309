// What the kernels of decode_chained share, on Hopper one kernel: how a matmul is cut among CTAs, and the layout of its
// operands.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/decode.h"
#include "kernels/cuda/layout.h"

namespace saccade::cuda::chain {

using bf16 = __nv_bfloat16;

inline constexpr int kMaxRows = 64;
inline constexpr int kGroupStrips = 8;  // of a split matmul: 128 rows
inline constexpr int kGroupRows = kGroupStrips * kStripRows;

// Activations [B,K] of a matmul: K/64 tiles of 64 rows x 64 values, swizzled, whatever B is.
SACCADE_HOST_DEVICE constexpr int64_t tile_offset(int64_t row, int64_t column) {
  return column / kBlockCols * (kMaxRows * kBlockCols) + swizzled(row, column % kBlockCols);
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

// A matrix cut into `ctas` ranges of equal bytes: units are (group of strips, block of 64 columns), columns inside. A
// group is summed from the partial sums of the CTAs that touch it, in their order. Depends on N, K and the device.
struct Split {
  int groups = 0, blocks = 0, ctas = 0;

  SACCADE_HOST_DEVICE int units() const { return groups * blocks; }
  SACCADE_HOST_DEVICE int begin(int cta) const { return units() * cta / ctas; }
  SACCADE_HOST_DEVICE int cta_of(int unit) const { return ((unit + 1) * ctas - 1) / units(); }
  SACCADE_HOST_DEVICE int first(int group) const { return cta_of(group * blocks); }
  SACCADE_HOST_DEVICE int count(int group) const { return cta_of((group + 1) * blocks - 1) - first(group) + 1; }
  SACCADE_HOST_DEVICE int most() const { return (ctas + groups - 1) / groups + 1; }  // no count is larger
};

// Partial sums [groups, most, rows, 128] F32 of a split matmul.
struct Partials {
  float* data = nullptr;
  Split split;
  int rows = 0;

  __device__ const float* of(int row, int n) const {  // of the first CTA; those of the next are `step()` further
    return data + (static_cast<int64_t>(n / kGroupRows) * split.most() * rows + row) * kGroupRows + n % kGroupRows;
  }
  __device__ int64_t step() const { return static_cast<int64_t>(rows) * kGroupRows; }
};

// A matrix in strips, cut for a matmul: by units of a Split, or, where an epilogue needs complete sums, by whole
// strips.
struct Matrix {
  const bf16* w = nullptr;
  int strips = 0, blocks = 0;
  bool whole = false;
  Split split;
};

inline Matrix matrix_of(const Weight& w, bool whole) {
  Matrix m;
  m.w = static_cast<const bf16*>(w.data[0].data);
  m.strips = static_cast<int>(strips_of(w.rows()));
  m.blocks = static_cast<int>(blocks_of(w.cols()));
  m.whole = whole;
  m.split.groups = (m.strips + kGroupStrips - 1) / kGroupStrips;
  m.split.blocks = m.blocks;
  m.split.ctas = !use_hopper() ? m.split.groups : std::min(sm_count(), whole ? m.strips : m.split.units());
  return m;
}

struct Linear {
  enum Out : int { kPartials, kGateUpSilu, kLogits };

  const bf16* x = nullptr;  // tiles [K/64,64,64]
  Matrix m;
  int rows = 0, n = 0;
  Out out = kPartials;
  float* partials = nullptr;  // kPartials: see Partials
  bf16* tiles = nullptr;      // kGateUpSilu: [N/2/64,64,64]
  float* logits = nullptr;    // kLogits: [B,N]
};

// Takes the sums of rows n and n + 8 of the matrix (n % 16 < 8) for row b of x.
__device__ __forceinline__ void store(const Linear& a, float* partials, int n, int b, float low, float high) {
  if (b >= a.rows) return;
  if (a.out == Linear::kPartials) {
    float* y = partials + b * kGroupRows + n % kGroupRows;
    y[0] = low;
    y[8] = high;
  } else if (a.out == Linear::kGateUpSilu) {
    const float gate = rounded(low);
    const float silu = rounded(gate / (1 + __expf(-gate)));
    a.tiles[tile_offset(b, n / 16 * 8 + n % 8)] = __float2bfloat16(silu * rounded(high));
  } else {
    float* y = a.logits + static_cast<int64_t>(b) * a.n;
    if (n < a.n) y[n] = rounded(low);
    if (n + 8 < a.n) y[n + 8] = rounded(high);
  }
}

void linear_portable(Stream stream, const Linear& a);

// h = round(h + round(sum of partials)), or h itself where partials.data is null; x = rms_norm(h) as tiles.
struct Norm {
  bf16* h = nullptr;  // [B,D]
  Partials partials;
  const bf16* w = nullptr;
  bf16* x = nullptr;
  int rows = 0, width = 0;
  float eps = 0;
};
void add_norm(Stream stream, const Norm& a);

struct Attention {
  int rows = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int max_pages = 0, max_spans = 0;  // of a sequence
  float scale = 0;
  const float* cos_sin = nullptr;                                         // [B,2,Dh/2]
  const int *slots = nullptr, *kv_lens = nullptr, *page_table = nullptr;  // [B], [B], [B,max_pages]
  bf16* kv = nullptr;                                                     // [pages,2,K,64,Dh]
  bf16* q = nullptr;                                                      // [B,H,Dh] in paired order
  float* sums = nullptr;                                                  // [B,K,max_spans,H/K,Dh]
  float2* stats = nullptr;                                                // [B,K,max_spans,H/K]: top, sum
  bf16* y = nullptr;                                                      // tiles of [B,H*Dh]

  SACCADE_HOST_DEVICE int group() const { return heads / kv_heads; }
};
// Spans that a sequence's pages are cut into, each by one CTA; a function of its length alone.
inline constexpr int kMaxSpans = 64, kStepPages = 2, kLeastSpanPages = 6;
SACCADE_HOST_DEVICE constexpr int span_pages(int pages) {
  const int even = kStepPages * ((pages + kStepPages * kMaxSpans - 1) / (kStepPages * kMaxSpans));
  return even < kLeastSpanPages ? kLeastSpanPages : even;
}

void rope_append(Stream stream, const Attention& a, const Partials& qkv, const bf16* bias);
void attend(Stream stream, const Attention& a);   // q, kv -> sums, stats
void combine(Stream stream, const Attention& a);  // sums, stats -> y

// A step as one kernel.
struct Operands {
  bf16 *x = nullptr, *activated = nullptr;  // tiles of [B,D] and [B,F]
  float* partials = nullptr;
  unsigned* arrived = nullptr;
};
bool can_decode_at_once(const Decoder& d);
void decode_at_once(Stream stream, const Decoder& d, const DecodeStep& step, const Attention& attention,
                    const Operands& operands);

}  // namespace saccade::cuda::chain
