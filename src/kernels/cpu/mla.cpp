#include "kernels/cpu/mla.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/items.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/linear.h"

namespace saccade::cpu {
namespace {

constexpr int64_t kAbsorbRows = 8;      // of q per item: their sums, 2 KB each, stay in L1
constexpr int64_t kProjectRows = 96;    // of latents per item; a multiple of every product's row step
constexpr int64_t kProjectValues = 64;  // of a head per item

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sizes {
  int64_t tokens, heads, plain, turned, latent, value;

  Sizes(const Tensor& q, const Tensor& kv_layer, const Weight& kv_b, const Tensor& y)
      : tokens(q.dim(0)),
        heads(q.dim(1)),
        plain(q.dim(2) - (kv_layer.dim(2) - kv_b.cols())),
        turned(kv_layer.dim(2) - kv_b.cols()),
        latent(kv_b.cols()),
        value(y.dim(2)) {}
};

template <class T>
void rope_append(ThreadPool& pool, const Tensor& q, const Tensor& kv_a, const Tensor& norm, float eps,
                 const Tensor& cos_sin, const Tensor& slots, const Tensor& kv_layer) {
  const int64_t heads = q.dim(1), dim = q.dim(2), latent = norm.dim(0), turned = kv_a.dim(1) - latent;
  const auto rope = kernels().of<T>().rope_round_each;
  const auto rms_norm = kernels().of<T>().rms_norm;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 13) / (heads * turned + latent));
  pool.parallel_for(q.dim(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<T> apart(static_cast<size_t>(turned));
    const auto turn = [&](const T* from, const float* by, T* to) {
      for (int64_t i = 0; i < turned; ++i) apart[static_cast<size_t>(i % 2 * (turned / 2) + i / 2)] = from[i];
      rope(apart.data(), by, to, turned);
    };
    for (int64_t t = begin; t < end; ++t) {
      const float* by = cos_sin.row<float>(t);
      for (int64_t h = 0; h < heads; ++h) {
        T* x = q.row<T>(t) + (h + 1) * dim - turned;
        turn(x, by, x);
      }
      const int64_t slot = slots.as<int32_t>()[t];
      T* to = kv_layer.as<T>() + slot * (latent + turned);
      rms_norm(kv_a.row<T>(t), norm.as<T>(), to, latent, eps);
      turn(kv_a.row<T>(t) + latent, by, to + latent);
    }
  });
}

// q [T,H,N+R] -> to [T,H,C+R]: q_plain W_UK, rounded | the turned part.
template <class T, class W>
void absorb(ThreadPool& pool, Arena& scratch, const Sizes& s, const Tensor& q, const Tensor& w, const Tensor& to) {
  const int64_t row_blocks = ceil_div(s.tokens, kAbsorbRows), size = kAbsorbRows * (s.plain + s.latent);
  const auto scope = scratch.scope();
  auto* floats = static_cast<float*>(scratch.allocate(static_cast<size_t>(pool.size() * size) * sizeof(float)));
  const auto multiply = kernels().of<W>().multiply_down;
  const auto finish = kernels().of<T>().finish;
  const bool alone = s.tokens * s.heads * s.plain * s.latent <= kAlone;
  for_items(pool, s.heads * row_blocks, alone, [&](int worker, int64_t item) {
    const int64_t h = item / row_blocks, first = item % row_blocks * kAbsorbRows;
    const int64_t rows = std::min(kAbsorbRows, s.tokens - first);
    float *x = floats + worker * size, *sums = x + kAbsorbRows * s.plain;
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = q.row<T>(first + i) + h * (s.plain + s.turned);
      for (int64_t n = 0; n < s.plain; ++n) x[i * s.plain + n] = static_cast<float>(from[n]);
    }
    multiply(x, rows, w.row<W>(h * (s.plain + s.value)), s.latent, s.plain, s.latent, sums);
    for (int64_t i = 0; i < rows; ++i) {
      T* y = to.row<T>(first + i) + h * (s.latent + s.turned);
      finish(LinearOut::kStore, sums + i * s.latent, nullptr, nullptr, nullptr, y, s.latent);
      std::memcpy(y + s.latent, q.row<T>(first + i) + h * (s.plain + s.turned) + s.plain,
                  static_cast<size_t>(s.turned) * sizeof(T));
    }
  });
}

// x [T,H,C] -> y [T,H,Dv]: x W_UV^T of each head, rounded.
template <class T, class W>
void project(ThreadPool& pool, Arena& scratch, const Product& product, const Sizes& s, const Tensor& x, const Tensor& w,
             const Tensor& y) {
  const int64_t row_blocks = ceil_div(s.tokens, kProjectRows), value_blocks = ceil_div(s.value, kProjectValues);
  const int64_t most_rows = std::min(kProjectRows, ceil_div(s.tokens, product.row_step) * product.row_step);
  const int64_t padded = ceil_div(s.latent, product.k_step) * product.k_step;
  const size_t packed_bytes = (static_cast<size_t>(most_rows * padded) * product.packed_size + 63) / 64 * 64;
  const size_t bytes = packed_bytes + static_cast<size_t>(most_rows * kProjectValues) * sizeof(float);
  const auto scope = scratch.scope();
  auto* memory = static_cast<std::byte*>(scratch.allocate(static_cast<size_t>(pool.size()) * bytes));
  const auto finish = kernels().of<T>().finish;
  const bool alone = s.tokens * s.heads * s.value * s.latent <= kAlone;
  for_items(pool, s.heads * value_blocks * row_blocks, alone, [&](int worker, int64_t item) {
    const int64_t h = item / row_blocks / value_blocks, v = item / row_blocks % value_blocks * kProjectValues;
    const int64_t first = item % row_blocks * kProjectRows;
    const int64_t rows = std::min(kProjectRows, s.tokens - first), count = std::min(kProjectValues, s.value - v);
    std::byte* packed = memory + static_cast<size_t>(worker) * bytes;
    auto* sums = reinterpret_cast<float*>(packed + packed_bytes);
    product.pack(x.row<T>(first) + h * s.latent, s.heads * s.latent, nullptr, rows, s.latent, packed);
    const W* from = w.row<W>(h * (s.plain + s.value) + s.plain + v);
    const MultiplyArgs args{packed, from, from, s.latent, rows, count, s.latent, sums, kProjectValues, false};
    rows == 1 && product.stream ? product.stream(args, padded) : product.multiply(args);
    for (int64_t i = 0; i < rows; ++i) {
      finish(LinearOut::kStore, sums + i * kProjectValues, nullptr, nullptr, nullptr,
             y.row<T>(first + i) + h * s.value + v, count);
    }
  });
}

template <class T, class W>
void absorbed(ThreadPool& pool, Arena& scratch, const Product& product, const Tensor& q, const Weight& kv_b,
              const Tensor& kv_layer, const PagedIndex& index, float scale, const Tensor& y) {
  const Sizes s(q, kv_layer, kv_b, y);
  const auto scope = scratch.scope();
  const Tensor queries = scratch.tensor(q.dtype, {s.tokens, s.heads, s.latent + s.turned});
  const Tensor latents = scratch.tensor(q.dtype, {s.tokens, s.heads, s.latent});
  absorb<T, W>(pool, scratch, s, q, kv_b.data[0], queries);
  CausalKeys keys{};
  keys.k = keys.v = kv_layer.data;
  keys.heads = 1;
  keys.paged = true;
  keys.block_stride = kv_layer.stride[0];
  keys.token_stride = kv_layer.stride[1];
  causal_attention(pool, scratch, queries, keys, index, scale, latents);
  project<T, W>(pool, scratch, product, s, latents, kv_b.data[0], y);
}

// The latents of the first n tokens of a sequence -> [n, C].
void gather(ThreadPool& pool, const Tensor& kv_layer, const int32_t* pages, const Tensor& to) {
  const int64_t page_tokens = kv_layer.dim(1);
  const size_t bytes = to.bytes() / static_cast<size_t>(to.dim(0)), size = dtype_size(kv_layer.dtype);
  pool.parallel_for(to.dim(0), page_tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t from = pages[t / page_tokens] * kv_layer.stride[0] + t % page_tokens * kv_layer.stride[1];
      std::memcpy(static_cast<std::byte*>(to.data) + static_cast<size_t>(t) * bytes,
                  static_cast<const std::byte*>(kv_layer.data) + static_cast<size_t>(from) * size, bytes);
    }
  });
}

}  // namespace

void mla_rope_append(ThreadPool& pool, const Tensor& q, const Tensor& kv_a, const Tensor& norm, float eps,
                     const Tensor& cos_sin, const Tensor& slots, const Tensor& kv_layer) {
  q.dtype == DType::kBF16 ? rope_append<BFloat16>(pool, q, kv_a, norm, eps, cos_sin, slots, kv_layer)
                          : rope_append<float>(pool, q, kv_a, norm, eps, cos_sin, slots, kv_layer);
}

void mla_absorbed(ThreadPool& pool, Arena& scratch, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                  const PagedIndex& index, float scale, const Tensor& y) {
  const Kernels& isa = kernels();
  if (q.dtype == DType::kBF16) {
    absorbed<BFloat16, BFloat16>(pool, scratch, isa.bf16_bf16, q, kv_b, kv_layer, index, scale, y);
  } else if (kv_b.data[0].dtype == DType::kBF16) {
    absorbed<float, BFloat16>(pool, scratch, isa.f32_bf16, q, kv_b, kv_layer, index, scale, y);
  } else {
    absorbed<float, float>(pool, scratch, isa.f32_f32, q, kv_b, kv_layer, index, scale, y);
  }
}

void mla_expanded(ThreadPool& pool, Arena& scratch, const Tensor& q, const Weight& kv_b, const Tensor& kv_layer,
                  const PagedIndex& index, float scale, const Tensor& y) {
  const Sizes s(q, kv_layer, kv_b, y);
  const int64_t width = s.heads * (s.plain + s.value);
  const size_t size = dtype_size(q.dtype);
  for (int64_t b = 0; b < index.kv_lens.dim(0); ++b) {
    const int32_t begin = index.q_offsets.as<int32_t>()[b], end = index.q_offsets.as<int32_t>()[b + 1];
    const int64_t length = index.kv_lens.as<int32_t>()[b];
    if (begin == end) continue;
    const auto scope = scratch.scope();  // one sequence at a time
    const Tensor latents = scratch.tensor(q.dtype, {length, s.latent});
    const Tensor kv = scratch.tensor(q.dtype, {length, width});
    gather(pool, kv_layer, index.page_table.row<int32_t>(b), latents);
    linear(pool, scratch, latents, kv_b, kv, LinearOut::kStore);
    CausalKeys keys{};
    keys.k = kv.data;
    keys.v = static_cast<const std::byte*>(kv.data) + static_cast<size_t>(s.plain) * size;
    keys.heads = s.heads;
    keys.head_stride = s.plain + s.value;
    keys.block_stride = kv_layer.dim(1) * width;
    keys.token_stride = width;
    keys.tail = static_cast<const std::byte*>(kv_layer.data) + static_cast<size_t>(s.latent) * size;
    keys.tail_dim = s.turned;
    keys.tail_block_stride = kv_layer.stride[0];
    keys.tail_token_stride = kv_layer.stride[1];
    const int32_t offsets[2] = {0, end - begin};
    const PagedIndex one = {Tensor(offsets, DType::kI32, {2}), index.kv_lens.slice(b, b + 1),
                            index.page_table.slice(b, b + 1)};
    causal_attention(pool, scratch, q.slice(begin, end), keys, one, scale, y.slice(begin, end));
  }
}

}  // namespace saccade::cpu
