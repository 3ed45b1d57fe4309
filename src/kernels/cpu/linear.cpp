// The output of all groups together is cut into items of some rows of x by some rows of their w, which threads take in
// turn: one expert's few rows keep all of them as busy as one large matrix does. An item runs over k in blocks whose
// packed x stays in L2 and whose tiles stay in L1, then rounds and stores while its sums are still in cache. The
// weights stream from memory once for every block of rows of x.
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <span>

#include "kernels/cpu/items.h"
#include "kernels/cpu/kernels.h"

namespace saccade::cpu {
namespace {

constexpr int64_t kBlockK = 2048;  // 6 rows of x and 4 of w of it fit L1 together, a block's rows of x half of L2
constexpr int64_t kPackRows = 48;  // of x per item; a multiple of every product's row step
constexpr int64_t kBlockN = 128;   // rows of w per item when there are many rows of x
constexpr int64_t kStreamBytes = 4 << 20;  // of w per item when there are few: long runs stream best

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Rows [first, first + rows) of y, which share a weight, and how their part of the output is cut.
struct Group {
  const Weight* w = nullptr;
  int64_t first = 0, rows = 0;
  int64_t block_t = 0, t_blocks = 0, block_n = 0, n_blocks = 0;
  int64_t pack_blocks = 0;          // of a block of rows
  int64_t pack_item = 0, item = 0;  // the first of each kind that is its own
  size_t packed = 0;                // where its packed x begins

  int64_t rows_of(int64_t t_block) const { return std::min(block_t, rows - t_block * block_t); }
};

struct Plan {
  int64_t t = 0, n = 0, k = 0, block_k = 0, k_blocks = 0;
  std::span<Group> groups;
  int64_t pack_items = 0, items = 0, sum_size = 0;
  size_t packed_bytes = 0;

  size_t packed_block(const Product& product, const Group& g) const {
    return static_cast<size_t>(g.block_t * round_up(k, product.k_step)) * product.packed_size;
  }
};

// From `least` blocks of each of so many units on, the number that leaves threads idle for the smallest share of the
// time: all blocks cost the same.
int64_t even_blocks(int64_t least, int64_t most, int64_t units, int64_t threads) {
  const auto waste = [&](int64_t blocks) {
    const auto slots = static_cast<double>(round_up(units * blocks, threads));
    return slots / static_cast<double>(units * blocks) + 0.001 * static_cast<double>(blocks);  // long runs stream best
  };
  int64_t best = least;
  for (int64_t blocks = least; blocks <= std::min(most, 4 * least); ++blocks) {
    if (waste(blocks) < waste(best)) best = blocks;
  }
  return best;
}

Plan plan(Arena& scratch, const Product& product, std::span<const int32_t> offsets, std::span<const Weight> weights,
          int64_t n, int64_t k, size_t weight_size, int threads, bool pair) {
  Plan p;
  p.t = offsets.back();
  p.n = n;
  p.k = k;
  p.block_k = round_up(ceil_div(k, ceil_div(k, kBlockK)), product.k_step);
  p.k_blocks = ceil_div(k, p.block_k);
  auto* groups = static_cast<Group*>(scratch.allocate(weights.size() * sizeof(Group)));
  size_t count = 0;
  int64_t t_blocks = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    Group g;
    g.w = &weights[i];
    g.first = offsets[i];
    g.rows = offsets[i + 1] - offsets[i];
    if (g.rows == 0) continue;
    g.block_t = round_up(ceil_div(g.rows, ceil_div(g.rows, product.most_rows)), product.row_step);
    g.t_blocks = ceil_div(g.rows, g.block_t);
    g.pack_blocks = ceil_div(g.block_t, kPackRows);
    t_blocks += g.t_blocks;
    groups[count++] = g;
  }
  p.groups = {groups, count};
  for (Group& g : p.groups) {
    const bool few = g.rows <= 16;
    int64_t rows = few ? kStreamBytes / (k * static_cast<int64_t>(weight_size)) : kBlockN;
    const int64_t per_thread = ceil_div(n * t_blocks, (few ? 2 : 4) * threads);  // several each, to even out the end
    rows = std::max<int64_t>(16, round_up(std::min(rows, per_thread) / (pair ? 2 : 1), 16));
    g.n_blocks = even_blocks(ceil_div(n, rows), ceil_div(n, 16), t_blocks, threads);
    g.block_n = round_up(ceil_div(n, g.n_blocks), 16);
    g.n_blocks = ceil_div(n, g.block_n);
    g.pack_item = p.pack_items;
    g.item = p.items;
    g.packed = p.packed_bytes;
    p.pack_items += g.t_blocks * p.k_blocks * g.pack_blocks;
    p.items += g.t_blocks * g.n_blocks;
    p.packed_bytes += static_cast<size_t>(g.t_blocks) * p.packed_block(product, g);
    p.sum_size = std::max(p.sum_size, (g.block_t + 1) * g.block_n);  // and a row of biases
  }
  return p;
}

// The group that an item belongs to.
const Group& group_of(const Plan& p, int64_t item, int64_t Group::*first) {
  return *(std::ranges::upper_bound(p.groups, item, {}, first) - 1);
}

// Rows [begin, end) of one part of w times t rows of packed x -> sums [t][ld]. `after` is what this thread will want
// next, or null.
template <class W>
void multiply_part(const Product& product, const Plan& p, const std::byte* x, int64_t t, const Tensor& w, int64_t begin,
                   int64_t end, const W* after, float* sums, int64_t ld) {
  const W* first = w.row<W>(begin);
  if (t == 1 && product.stream && p.k_blocks <= kMaxStreamBlocks) {
    product.stream({x, first, first, p.k, 1, end - begin, p.k, sums, ld, false}, p.block_k);
    return;
  }
  const int64_t padded_t = round_up(t, product.row_step);
  for (int64_t k0 = 0; k0 < p.k; k0 += p.block_k) {
    const W* next = after ? after : first;
    if (k0 + p.block_k < p.k) next = first + k0 + p.block_k;
    product.multiply({.x = x + static_cast<size_t>(padded_t * k0) * product.packed_size,
                      .w = first + k0,
                      .next = next,
                      .ldw = p.k,
                      .t = t,
                      .n = end - begin,
                      .k = std::min(p.block_k, p.k - k0),
                      .out = sums,
                      .ldo = ld,
                      .add = k0 > 0});
  }
}

// Biases of rows [begin, end) as floats in `to`, or null.
template <class W>
const float* bias_of(const Tensor& bias, int64_t begin, int64_t end, float* to) {
  if (!bias) return nullptr;
  for (int64_t i = begin; i < end; ++i) to[i - begin] = static_cast<float>(bias.as<W>()[i]);
  return to;
}

// Where the rows of w of an item begin.
template <class W>
const W* first_row(const Plan& p, int64_t item) {
  const Group& g = group_of(p, item, &Group::item);
  int64_t row = (item - g.item) / g.t_blocks * g.block_n;
  size_t part = 0;
  while (row >= g.w->data[part].dim(0)) row -= g.w->data[part++].dim(0);
  return g.w->data[part].row<W>(row);
}

template <class X, class W>
void run(ThreadPool& pool, Arena& scratch, const Product& product, const Tensor& x, const int32_t* tokens,
         std::span<const int32_t> offsets, std::span<const Weight> weights, const Tensor& y, LinearOut out) {
  const int64_t k = x.dim(1), n = y.dim(1);
  if (offsets.back() == 0 || n == 0) return;
  const bool pair = out == LinearOut::kGateUpSilu;
  const auto scope = scratch.scope();
  const Plan p = plan(scratch, product, offsets, weights, n, k, sizeof(W), pool.size(), pair);
  const bool alone = p.t * n * k <= kAlone;
  auto* packed = static_cast<std::byte*>(scratch.allocate(p.packed_bytes));
  auto* sums = static_cast<float*>(
      scratch.allocate(static_cast<size_t>(pool.size() * (pair ? 2 : 1) * p.sum_size) * sizeof(float)));

  for_items(pool, p.pack_items, p.t * k < (1 << 16), [&](int, int64_t item) {
    const Group& g = group_of(p, item, &Group::pack_item);
    item -= g.pack_item;
    const int64_t from = item % g.pack_blocks * kPackRows, block = item / g.pack_blocks;
    const int64_t t_block = block / p.k_blocks, k0 = block % p.k_blocks * p.block_k,
                  width = std::min(p.block_k, k - k0);
    const int64_t rows = g.rows_of(t_block), first = g.first + t_block * g.block_t + from;
    if (from >= rows) return;  // the last block of rows may be shorter
    const int64_t offset = round_up(rows, product.row_step) * k0 + from * round_up(width, product.k_step);
    product.pack(x.row<X>(tokens ? 0 : first) + k0, k, tokens ? tokens + first : nullptr,
                 std::min(kPackRows, rows - from), width,
                 packed + g.packed + static_cast<size_t>(t_block) * p.packed_block(product, g) +
                     static_cast<size_t>(offset) * product.packed_size);
  });

  const auto finish = kernels().of<X>().finish;
  for_items_ahead(pool, p.items, alone, [&](int worker, int64_t item, int64_t following) {
    const Group& g = group_of(p, item, &Group::item);
    const Weight& w = *g.w;
    const W* after = following < p.items ? first_row<W>(p, following) : nullptr;
    const int64_t t_block = (item - g.item) % g.t_blocks, rows = g.rows_of(t_block);
    const std::byte* xs = packed + g.packed + static_cast<size_t>(t_block) * p.packed_block(product, g);
    float* sum = sums + worker * (pair ? 2 : 1) * p.sum_size;
    float *bias = sum + g.block_t * g.block_n, *up = sum + p.sum_size, *up_bias = bias + p.sum_size;
    int64_t begin = (item - g.item) / g.t_blocks * g.block_n;
    const int64_t end = std::min(n, begin + g.block_n);
    int64_t part_begin = 0;
    for (size_t part = 0; begin < end; ++part) {  // an item may reach over parts
      const int64_t part_end = part_begin + w.data[part].dim(0);
      if (begin < part_end) {
        const int64_t from = begin - part_begin, to = std::min(end, part_end) - part_begin;
        multiply_part<W>(product, p, xs, rows, w.data[part], from, to, pair ? w.data[1].row<W>(from) : after, sum,
                         g.block_n);
        const float* b = bias_of<W>(w.bias[part], from, to, bias);
        const float* up_b = nullptr;
        if (pair) {
          multiply_part<W>(product, p, xs, rows, w.data[1], from, to, after, up, g.block_n);
          up_b = bias_of<W>(w.bias[1], from, to, up_bias);
        }
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t row = g.first + t_block * g.block_t + i;
          void* to_y = out == LinearOut::kFloat ? static_cast<void*>(y.row<float>(row) + begin)
                                                : static_cast<void*>(y.row<X>(row) + begin);
          finish(out, sum + i * g.block_n, up + i * g.block_n, b, up_b, to_y, to - from);
        }
        begin = part_begin + to;
      }
      part_begin = part_end;
    }
  });
}

}  // namespace

void linear(ThreadPool& pool, Arena& scratch, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out) {
  const int32_t offsets[] = {0, static_cast<int32_t>(x.dim(0))};
  grouped_linear(pool, scratch, x, {}, Tensor(offsets, DType::kI32, {2}), {&w, 1}, y, out);
}

void grouped_linear(ThreadPool& pool, Arena& scratch, const Tensor& x, const Tensor& tokens, const Tensor& offsets,
                    std::span<const Weight> weights, const Tensor& y, LinearOut out) {
  const Kernels& isa = kernels();
  const int32_t* rows = tokens ? tokens.as<int32_t>() : nullptr;
  const std::span<const int32_t> ends(offsets.as<int32_t>(), weights.size() + 1);
  if (x.dtype == DType::kBF16) {
    run<BFloat16, BFloat16>(pool, scratch, isa.bf16_bf16, x, rows, ends, weights, y, out);
  } else if (weights[0].data[0].dtype == DType::kBF16) {
    run<float, BFloat16>(pool, scratch, isa.f32_bf16, x, rows, ends, weights, y, out);
  } else {
    run<float, float>(pool, scratch, isa.f32_f32, x, rows, ends, weights, y, out);
  }
}

}  // namespace saccade::cpu
