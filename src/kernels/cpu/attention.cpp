#include "kernels/cpu/attention.h"

#include <vector>

#include "kernels/cpu/reference.h"

namespace saccade::cpu {
namespace {

namespace ref = reference;

template <class T>
void paged(ThreadPool& pool, const Tensor& q, const Tensor& kv_layer, const PagedIndex& index, float scale,
           const Tensor& y) {
  const int64_t heads = q.dim(1), dim = q.dim(2), group = heads / kv_layer.dim(2), page_tokens = kv_layer.dim(3);
  const auto* q_offsets = index.q_offsets.as<int32_t>();
  for (int64_t b = 0; b < index.kv_lens.dim(0); ++b) {
    const int64_t first = q_offsets[b], rows = q_offsets[b + 1] - first;
    const int64_t before = index.kv_lens.as<int32_t>()[b] - rows;
    const auto* pages = index.page_table.row<int32_t>(b);
    pool.parallel_for(rows * heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(static_cast<size_t>(before + rows));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t i = item / heads, h = item % heads;
        const auto key = [&](int64_t j) {
          return kv_layer.row<T>(pages[j / page_tokens]) + h / group * kv_layer.stride[2] + j % page_tokens * dim;
        };
        const auto value = [&](int64_t j) { return key(j) + kv_layer.stride[1]; };
        ref::attend(q.row<T>(first + i) + h * dim, key, value, before + i + 1, dim, scale, scores.data(),
                    y.row<T>(first + i) + h * dim);
      }
    });
  }
}

template <class T>
void segments(ThreadPool& pool, const Tensor& qkv, const Tensor& cu_seqlens, float scale, const Tensor& y) {
  const int64_t heads = qkv.dim(2), dim = qkv.dim(3);
  for (int64_t s = 0; s + 1 < cu_seqlens.dim(0); ++s) {
    const int64_t first = cu_seqlens.as<int32_t>()[s], rows = cu_seqlens.as<int32_t>()[s + 1] - first;
    pool.parallel_for(rows * heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(static_cast<size_t>(rows));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t i = first + item / heads, h = item % heads;
        const auto key = [&](int64_t j) { return qkv.row<T>(first + j) + qkv.stride[1] + h * dim; };
        const auto value = [&](int64_t j) { return qkv.row<T>(first + j) + 2 * qkv.stride[1] + h * dim; };
        ref::attend(qkv.row<T>(i) + h * dim, key, value, rows, dim, scale, scores.data(), y.row<T>(i) + h * dim);
      }
    });
  }
}

}  // namespace

void paged_attention(ThreadPool& pool, Arena&, const Tensor& q, const Tensor& kv_layer, const PagedIndex& index,
                     float scale, const Tensor& y) {
  q.dtype == DType::kBF16 ? paged<BFloat16>(pool, q, kv_layer, index, scale, y)
                          : paged<float>(pool, q, kv_layer, index, scale, y);
}

void segment_attention(ThreadPool& pool, Arena&, const Tensor& qkv, const Tensor& cu_seqlens, float scale,
                       const Tensor& y) {
  qkv.dtype == DType::kBF16 ? segments<BFloat16>(pool, qkv, cu_seqlens, scale, y)
                            : segments<float>(pool, qkv, cu_seqlens, scale, y);
}

}  // namespace saccade::cpu
