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

// Activations [B,K] of a matmul: K/64 tiles of 64 rows x 64 values, swizzled, whatever B is.
SACCADE_HOST_DEVICE constexpr unsigned tile_offset(unsigned row, unsigned column) {
  return column / kBlockCols * (kMaxRows * kBlockCols) + swizzled(row, column % kBlockCols);
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

// A matrix cut into `shares` ranges of equal bytes, one for each CTA or cluster: units are (group of strips, block of
// 64 columns), columns inside. A group is summed from the partial sums of the shares that touch it, in their order.
// Depends on N, K and the device.
struct Split {
  static constexpr int kStrips = 8;  // of a group

  int groups = 0, blocks = 0, shares = 0;
  int most = 0;  // shares of a group

  SACCADE_HOST_DEVICE int units() const { return groups * blocks; }
  SACCADE_HOST_DEVICE int share_of(int unit) const { return ((unit + 1) * shares - 1) / units(); }
  SACCADE_HOST_DEVICE int first(int group) const { return share_of(group * blocks); }
  SACCADE_HOST_DEVICE int count(int group) const { return share_of((group + 1) * blocks - 1) - first(group) + 1; }
};

// Partial sums [groups, most, strips of a group, rows, 16] F32 of a split matmul. Of a strip's columns, those that a
// thread has of wgmma are neighbours, and so are those that rope needs together: 0, 1, 8, 9, 2, 3, 10, 11 and so on.
struct Partials {
  float* data = nullptr;
  Split split;
  int rows = 0;
  const uint8_t* counts = nullptr;  // of each group; else each has one

  SACCADE_HOST_DEVICE int64_t floats() const { return step() * split.groups * split.most; }
  // Of the next share behind those of the one before.
  SACCADE_HOST_DEVICE int64_t step() const { return int64_t{Split::kStrips} * rows * kStripRows; }
  // Of the strip's `part`th share: columns n, n + 1, n + 8 and n + 9 of a row; n % 16 = 0, 2, 4 or 6.
  SACCADE_HOST_DEVICE float* of(int part, int row, int n) const {
    const unsigned strip = n / kStripRows, group = strip / Split::kStrips;
    return data + (group * split.most + part) * step() + (strip % Split::kStrips * rows + row) * kStripRows +
           n % kStripRows * 2;
  }
  __device__ int count(int n) const { return counts == nullptr ? 1 : counts[n / (Split::kStrips * kStripRows)]; }
};

// A matrix in strips, cut for a matmul: by units of a Split, or, where an epilogue needs complete sums, by whole
// strips.
struct Matrix {
  const bf16* w = nullptr;
  int strips = 0, blocks = 0;
  bool whole = false;
  Split split;
};

// Clusters that decode_at_once runs on, and the CTAs of each.
inline constexpr int kClusterCtas = 2;
int cluster_count();

inline Matrix matrix_of(const Weight& w, bool whole) {
  Matrix m;
  m.w = static_cast<const bf16*>(w.data[0].data);
  m.strips = static_cast<int>(strips_of(w.rows()));
  m.blocks = static_cast<int>(blocks_of(w.cols()));
  m.whole = whole;
  Split& split = m.split;
  split.groups = (m.strips + Split::kStrips - 1) / Split::kStrips;
  split.blocks = m.blocks;
  split.shares = use_hopper() ? std::min(cluster_count(), whole ? m.strips : split.units()) : split.groups;
  split.most = (split.shares + split.groups - 1) / split.groups + 1;
  return m;
}

struct Linear {
  enum Out : int { kPartials, kGateUpSilu, kLogits };

  const bf16* x = nullptr;  // tiles [K/64,64,64]
  Matrix m;
  int rows = 0, n = 0;
  Out out = kPartials;
  Partials partials;        // kPartials
  bf16* tiles = nullptr;    // kGateUpSilu: [N/2/64,64,64]
  float* logits = nullptr;  // kLogits: [B,N]
};

// Takes the sums of rows n and n + 8 of the matrix (n % 16 < 8) for row b of x.
__device__ __forceinline__ void store(const Linear& a, int n, int b, float low, float high) {
  if (b >= a.rows) return;
  if (a.out == Linear::kPartials) {
    float* y = a.partials.of(0, b, n / 2 * 2) + n % 2;
    y[0] = low;
    y[2] = high;
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

struct alignas(16) SpanStats {  // of a head: the highest score, the sum of weights
  float top, total;
};

struct Attention {
  int rows = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int max_pages = 0, max_spans = 0;  // of a sequence
  int ctas = 0;                      // that attend
  float scale = 0;
  const float* cos_sin = nullptr;                                         // [B,2,Dh/2]
  const int *slots = nullptr, *kv_lens = nullptr, *page_table = nullptr;  // [B], [B], [B,max_pages]
  bf16* kv = nullptr;                                                     // [pages,2,K,64,Dh]
  bf16* q = nullptr;                                                      // [B,H,Dh] in paired order
  float* sums = nullptr;                                                  // [B,K,max_spans,H/K,Dh]
  SpanStats* stats = nullptr;                                             // [B,K,max_spans,H/K]
  bf16* y = nullptr;                                                      // tiles of [B,H*Dh]

  SACCADE_HOST_DEVICE int group() const { return heads / kv_heads; }
};
// Spans that a sequence's pages are cut into, each by one CTA; a function of its length alone.
inline constexpr int kMaxSpans = 64, kStepPages = 2, kSpanPages = 10;
SACCADE_HOST_DEVICE constexpr int span_pages(int pages) {
  const int wanted = (pages + kSpanPages - 1) / kSpanPages, spans = wanted < kMaxSpans ? wanted : kMaxSpans;
  return (pages + kStepPages * spans - 1) / (kStepPages * spans) * kStepPages;
}
SACCADE_HOST_DEVICE constexpr int spans_of(int pages) { return (pages + span_pages(pages) - 1) / span_pages(pages); }

void rope_append(Stream stream, const Attention& a, const Partials& qkv, const bf16* bias);
void attend(Stream stream, const Attention& a);   // q, kv -> sums, stats
void combine(Stream stream, const Attention& a);  // sums, stats -> y

// A step as one kernel.
struct Operands {
  bf16 *x = nullptr, *activated = nullptr;  // tiles of [B,D]; room for tiles of [B,F]
  float* partials = nullptr;
  unsigned* arrived = nullptr;  // and published: see decode_batch.cuh
};
bool can_decode_at_once(const Decoder& d);
void decode_at_once(Stream stream, const Decoder& d, const DecodeStep& step, const Attention& attention,
                    const Operands& operands);

}  // namespace saccade::cuda::chain
