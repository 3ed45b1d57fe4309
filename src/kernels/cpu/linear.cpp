// linear(): the output is cut into items of some rows of x by some rows of w, which threads take in turn. An item
// runs over k in blocks whose packed x stays in L2 and whose tiles stay in L1, then rounds and stores while its sums
// are still in cache. The weights stream from memory once for every kBlockT rows of x.
#include "kernels/cpu/linear.h"

#include <algorithm>

#include "kernels/cpu/items.h"
#include "kernels/cpu/kernels.h"

namespace saccade::cpu {
namespace {

constexpr int64_t kBlockK = 2048;          // 6 rows of x and 4 of w of it fit L1 together, kBlockT rows of x half of L2
constexpr int64_t kBlockT = 132;           // a multiple of the tiles' 6 and 3
constexpr int64_t kBlockN = 128;           // rows of w per item when there are many rows of x
constexpr int64_t kStreamBytes = 4 << 20;  // of w per item when there are few: long runs stream best

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Plan {
  int64_t t, k, block_t, block_k, padded_k, block_n, t_blocks, n_blocks;

  int64_t rows(int64_t t_block) const { return std::min(block_t, t - t_block * block_t); }
};

Plan plan(const Product& product, int64_t t, int64_t n, int64_t k, size_t weight_size, int threads, bool pair) {
  Plan p{};
  p.t = t;
  p.k = k;
  p.block_t = std::min(kBlockT / product.row_step * product.row_step, round_up(t, product.row_step));
  p.block_k = round_up(ceil_div(k, ceil_div(k, kBlockK)), product.k_step);
  p.padded_k = round_up(k, product.k_step);
  p.t_blocks = ceil_div(t, p.block_t);
  int64_t rows = kBlockN;
  if (t <= 16) rows = kStreamBytes / (k * static_cast<int64_t>(weight_size));
  const int64_t per_thread =
      ceil_div(n * p.t_blocks, (t <= 16 ? 2 : 4) * threads);  // several each, to even out the end
  rows = std::min(rows, per_thread) / (pair ? 2 : 1);
  p.block_n = std::max<int64_t>(16, round_up(rows, 16));
  p.n_blocks = ceil_div(n, p.block_n);
  return p;
}

// Rows [begin, end) of one part of w times t rows of packed x -> sums [t][ld], bias [end - begin].
template <class W>
void multiply_part(const Product& product, const Plan& p, const std::byte* x, int64_t t, const Tensor& w, int64_t begin,
                   int64_t end, float* sums, int64_t ld) {
  const W* first = w.row<W>(begin);
  if (t == 1 && product.stream && ceil_div(p.k, p.block_k) <= kMaxStreamBlocks) {
    product.stream({x, first, first, p.k, 1, end - begin, p.k, sums, ld, false}, p.block_k);
    return;
  }
  const int64_t padded_t = round_up(t, product.row_step);
  for (int64_t k0 = 0; k0 < p.k; k0 += p.block_k) {
    const W* next = first;  // the last tile has nothing to prefetch unless more of w follows
    if (k0 + p.block_k < p.k) {
      next = first + k0 + p.block_k;
    } else if (end + 16 <= w.dim(0)) {
      next = w.row<W>(end);
    }
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

template <class X, class W>
void run(ThreadPool& pool, Arena& scratch, const Product& product, const Tensor& x, const Weight& w, const Tensor& y,
         LinearOut out) {
  const int64_t t = x.dim(0), k = x.dim(1), n = y.dim(1);
  if (t == 0 || n == 0) return;
  const bool pair = out == LinearOut::kGateUpSilu;
  const Plan p = plan(product, t, n, k, sizeof(W), pool.size(), pair);
  const bool alone = t * n * k <= kAlone;

  const auto scope = scratch.scope();
  const auto x_block_bytes = static_cast<size_t>(p.block_t * p.padded_k) * product.packed_size;
  auto* packed = static_cast<std::byte*>(scratch.allocate(static_cast<size_t>(p.t_blocks) * x_block_bytes));
  const int64_t sum_size = (p.block_t + 1) * p.block_n;  // and a row of biases
  auto* sums = static_cast<float*>(
      scratch.allocate(static_cast<size_t>(pool.size() * (pair ? 2 : 1) * sum_size) * sizeof(float)));

  const int64_t k_blocks = ceil_div(k, p.block_k);
  for_items(pool, p.t_blocks * k_blocks, t * k < (1 << 16), [&](int, int64_t item) {
    const int64_t t_block = item / k_blocks, k0 = item % k_blocks * p.block_k, rows = p.rows(t_block);
    const auto offset = static_cast<size_t>(round_up(rows, product.row_step) * k0) * product.packed_size;
    product.pack(x.row<X>(t_block * p.block_t) + k0, k, rows, std::min(p.block_k, k - k0),
                 packed + static_cast<size_t>(t_block) * x_block_bytes + offset);
  });

  const auto finish = kernels().of<X>().finish;
  for_items(pool, p.t_blocks * p.n_blocks, alone, [&](int worker, int64_t item) {
    const int64_t t_block = item % p.t_blocks, rows = p.rows(t_block);
    const std::byte* xs = packed + static_cast<size_t>(t_block) * x_block_bytes;
    float* sum = sums + worker * (pair ? 2 : 1) * sum_size;
    float *bias = sum + p.block_t * p.block_n, *up = sum + sum_size, *up_bias = bias + sum_size;
    int64_t begin = item / p.t_blocks * p.block_n;
    const int64_t end = std::min(n, begin + p.block_n);
    int64_t part_begin = 0;
    for (size_t part = 0; begin < end; ++part) {  // an item may reach over parts
      const int64_t part_end = part_begin + w.data[part].dim(0);
      if (begin < part_end) {
        const int64_t from = begin - part_begin, to = std::min(end, part_end) - part_begin;
        multiply_part<W>(product, p, xs, rows, w.data[part], from, to, sum, p.block_n);
        const float* b = bias_of<W>(w.bias[part], from, to, bias);
        const float* up_b = nullptr;
        if (pair) {
          multiply_part<W>(product, p, xs, rows, w.data[1], from, to, up, p.block_n);
          up_b = bias_of<W>(w.bias[1], from, to, up_bias);
        }
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t row = t_block * p.block_t + i;
          void* to_y = out == LinearOut::kFloat ? static_cast<void*>(y.row<float>(row) + begin)
                                                : static_cast<void*>(y.row<X>(row) + begin);
          finish(out, sum + i * p.block_n, up + i * p.block_n, b, up_b, to_y, to - from);
        }
        begin = part_begin + to;
      }
      part_begin = part_end;
    }
  });
}

}  // namespace

void linear(ThreadPool& pool, Arena& scratch, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out) {
  const Kernels& isa = kernels();
  if (x.dtype == DType::kBF16) return run<BFloat16, BFloat16>(pool, scratch, isa.bf16_bf16, x, w, y, out);
  if (w.data[0].dtype == DType::kBF16) return run<float, BFloat16>(pool, scratch, isa.f32_bf16, x, w, y, out);
  return run<float, float>(pool, scratch, isa.f32_f32, x, w, y, out);
}

}  // namespace saccade::cpu
