// How attention of decoding cuts sequences among CTAs: spans of pages, of which each CTA takes as many pages as the
// others.
#pragma once

#include "kernels/cuda/decode_chain.cuh"

namespace saccade::cuda::chain {

constexpr int kStepTokens = kStepPages * kKvPageTokens;
constexpr int kScorePitch = kStepTokens + 8;  // floats; rows eight banks apart
constexpr int kQueryRows = 16;

// The steps of a CTA, one after another: sequence, key head, and the step's first page. Spans are consecutive in
// (sequence, head, page); a CTA owns those whose middle is in its range.
struct Cursor {
  int b, kv_head, page;     // page < pages
  int length, pages, span;  // of the sequence: tokens, pages, pages of a span
  int in_span, index;       // pages of the span before this step; spans before it
  int at;                   // pages of all sequences and heads before this step
  int pages_end;            // of the range
};

struct Lengths {
  int tokens[kMaxRows], pages_before[kMaxRows + 1];  // of the sequences before
};

__device__ __forceinline__ int pages_of(int tokens) { return (tokens + kKvPageTokens - 1) / kKvPageTokens; }

// Every warp computes the same; each writes what it will read.
__device__ __forceinline__ void read_lengths(const Attention& a, Lengths& l, int lane) {
  int tokens[2], pages[2];
  for (int i = 0; i < 2; ++i) {
    tokens[i] = 2 * lane + i < a.rows ? a.kv_lens[2 * lane + i] : 0;
    pages[i] = pages_of(tokens[i]);
  }
  int sum = pages[0] + pages[1];
  for (int i = 1; i < 32; i *= 2) {
    const int before = __shfl_up_sync(~0u, sum, i);
    if (lane >= i) sum += before;
  }
  for (int i = 0; i < 2; ++i) l.tokens[2 * lane + i] = tokens[i];
  l.pages_before[2 * lane + 1] = sum - pages[1];
  l.pages_before[2 * lane + 2] = sum;
  if (lane == 0) l.pages_before[0] = 0;
}

struct Walk {
  const Attention& a;
  const Lengths& l;

  __device__ void enter(Cursor& c) const {
    c.length = l.tokens[c.b];
    c.pages = pages_of(c.length);
    c.span = span_pages(c.pages);
  }
  __device__ Cursor first(int lane) const {
    const int total = l.pages_before[a.rows] * a.kv_heads;
    const int cta = min(static_cast<int>(blockIdx.x), a.ctas), begin = total * cta / a.ctas;
    Cursor c = {};
    c.pages_end = total * min(cta + 1, a.ctas) / a.ctas;
    for (int i = 0; i < 2; ++i)  // sequences that end before the range
      c.b += __popc(
          __ballot_sync(~0u, 32 * i + lane + 1 < a.rows && l.pages_before[32 * i + lane + 1] * a.kv_heads <= begin));
    enter(c);
    const int inside = begin - l.pages_before[c.b] * a.kv_heads;
    c.kv_head = inside / c.pages;
    c.index = inside % c.pages / c.span;
    c.page = c.index * c.span;
    c.at = l.pages_before[c.b] * a.kv_heads + c.kv_head * c.pages + c.page;
    if (middle(c) < 2 * begin) next_span(c);
    return c;
  }
  // Pages of the span that begins here, and twice its middle.
  __device__ int pages(const Cursor& c) const { return min(c.span, c.pages - c.page); }
  __device__ int middle(const Cursor& c) const { return 2 * c.at + pages(c); }
  __device__ void next_span(Cursor& c) const {
    const int pages = this->pages(c);
    c.at += pages;
    c.page += pages;
    ++c.index;
    if (c.page == c.pages) next_head(c);
  }
  __device__ bool done(const Cursor& c) const { return c.in_span == 0 && middle(c) >= 2 * c.pages_end; }
  __device__ bool ends_span(const Cursor& c) const {
    return c.page + kStepPages >= c.pages || c.in_span + kStepPages == c.span;
  }
  __device__ void advance(Cursor& c) const {
    const int pages = min(kStepPages, c.pages - c.page);
    c.at += pages;
    c.page += pages;
    c.in_span += kStepPages;
    if (c.in_span == c.span) {
      c.in_span = 0;
      ++c.index;
    }
    if (c.page == c.pages) next_head(c);
  }
  __device__ void next_head(Cursor& c) const {
    c.page = c.in_span = c.index = 0;
    if (++c.kv_head < a.kv_heads) return;
    c.kv_head = 0;
    if (++c.b < a.rows)
      enter(c);
    else
      c.at = c.pages_end;
  }
};

}  // namespace saccade::cuda::chain
