#include "kernels/cpu/linear.h"

#include <vector>

#include "kernels/cpu/reference.h"

namespace saccade::cpu {
namespace {

namespace ref = reference;

// Row n of the logical matrix w times x, plus bias.
template <class X, class W>
float product(const X* x, const Weight& w, int64_t n) {
  size_t part = 0;
  while (n >= w.data[part].dim(0)) n -= w.data[part++].dim(0);
  const float sum = ref::dot(x, w.data[part].row<W>(n), w.cols());
  return w.bias[part] ? sum + static_cast<float>(w.bias[part].as<W>()[n]) : sum;
}

template <class X, class W>
void run(ThreadPool& pool, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out) {
  const int64_t width = y.dim(1);
  pool.parallel_for(width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < x.dim(0); ++t) {
      const X* row = x.row<X>(t);
      for (int64_t n = begin; n < end; ++n) {
        const float sum = ref::rounded<X>(product<X, W>(row, w, n));
        switch (out) {
          case LinearOut::kStore:
            y.row<X>(t)[n] = ref::put<X>(sum);
            break;
          case LinearOut::kAdd:
            y.row<X>(t)[n] = ref::put<X>(ref::get(y.row<X>(t)[n]) + sum);
            break;
          case LinearOut::kFloat:
            y.row<float>(t)[n] = sum;
            break;
          case LinearOut::kGateUpSilu: {
            const float up = ref::rounded<X>(product<X, W>(row, w, width + n));
            y.row<X>(t)[n] = ref::put<X>(ref::rounded<X>(ref::silu(sum)) * up);
            break;
          }
        }
      }
    }
  });
}

}  // namespace

void linear(ThreadPool& pool, Arena&, const Tensor& x, const Weight& w, const Tensor& y, LinearOut out) {
  if (x.dtype == DType::kBF16) return run<BFloat16, BFloat16>(pool, x, w, y, out);
  if (w.data[0].dtype == DType::kBF16) return run<float, BFloat16>(pool, x, w, y, out);
  return run<float, float>(pool, x, w, y, out);
}

}  // namespace saccade::cpu
