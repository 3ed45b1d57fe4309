#include "kernels/cpu/moe.h"

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/reference.h"

namespace saccade::cpu {
namespace {

namespace ref = reference;

constexpr int64_t kValuesPerTask = int64_t{1} << 14;

int64_t rows_of(int64_t values_per_row) {
  return std::max<int64_t>(1, kValuesPerTask / std::max<int64_t>(1, values_per_row));
}

Tensor widened(ThreadPool& pool, Arena& scratch, const Tensor& x) {
  if (x.dtype == DType::kF32) return x;
  const Tensor y = scratch.tensor(DType::kF32, {x.dim(0), x.dim(1)});
  pool.parallel_for(x.numel(), kValuesPerTask, [&](int64_t begin, int64_t end) {
    std::transform(x.as<BFloat16>() + begin, x.as<BFloat16>() + end, y.as<float>() + begin,
                   [](BFloat16 value) { return float(value); });
  });
  return y;
}

// From experts[t,k] to the grouped rows of the choices, in place: counted, then dealt out in the order of tokens.
void group(const Tensor& experts, const Tensor& tokens, const Tensor& offsets) {
  const int64_t k = experts.dim(1), choices = experts.numel(), e = offsets.dim(0) - 1;
  auto *place = experts.as<int32_t>(), *token = tokens.as<int32_t>(), *offset = offsets.as<int32_t>();
  std::fill_n(offset, e + 1, 0);
  for (int64_t i = 0; i < choices; ++i) ++offset[place[i] + 1];
  for (int64_t i = 0; i < e; ++i) offset[i + 1] += offset[i];
  for (int64_t i = 0; i < choices; ++i) {
    place[i] = offset[place[i]]++;
    token[place[i]] = static_cast<int32_t>(i / k);
  }
  std::copy_backward(offset, offset + e, offset + e + 1);  // each has moved to where the next one began
  offset[0] = 0;
}

}  // namespace

void moe_route(ThreadPool& pool, Arena& scratch, const Tensor& x, const Tensor& gate, const Tensor& bias,
               const RouteArgs& args, const Tensor& weights, const Tensor& places, const Tensor& tokens,
               const Tensor& offsets) {
  const int64_t t = x.dim(0), e = gate.dim(0), k = weights.dim(1);
  const auto scope = scratch.scope();
  const Tensor scores = scratch.tensor(DType::kF32, {t, e});
  Weight w;
  w.parts = 1;
  w.data[0] = gate;
  linear(pool, scratch, widened(pool, scratch, x), w, scores, LinearOut::kStore);
  float* biases = nullptr;
  if (bias) {
    biases = scratch.tensor(DType::kF32, {e}).as<float>();
    for (int64_t i = 0; i < e; ++i) {
      biases[i] = bias.dtype == DType::kBF16 ? float(bias.as<BFloat16>()[i]) : bias.as<float>()[i];
    }
  }
  pool.parallel_for(t, rows_of(e * 16), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto* score = scores.row<float>(i);
      args.sigmoid ? ref::sigmoid(score, e) : ref::softmax(score, e);
      ref::route(score, biases, e, k, args.normalise, args.scale, places.row<int32_t>(i), weights.row<float>(i));
    }
  });
  group(places, tokens, offsets);
}

void moe_combine(ThreadPool& pool, const Tensor& x, const Tensor& weights, const Tensor& places, const Tensor& y) {
  const int64_t k = weights.dim(1), d = y.dim(1);
  const auto combine = [&]<class T>(T) {
    pool.parallel_for(y.dim(0), rows_of(k * d), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        kernels().of<T>().combine(x.as<T>(), places.row<int32_t>(i), weights.row<float>(i), k, d, y.row<T>(i));
      }
    });
  };
  x.dtype == DType::kBF16 ? combine(BFloat16{}) : combine(float{});
}

}  // namespace saccade::cpu
