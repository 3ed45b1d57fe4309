#include "kernels/cpu/rows.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"

namespace saccade::cpu {
namespace {

namespace ref = reference;

// Rows per task such that a task is worth handing to another core.
int64_t rows_of(int64_t values_per_row) {
  return std::max<int64_t>(1, (int64_t{1} << 14) / std::max<int64_t>(1, values_per_row));
}

// Calls fn with a value of the C++ type of an F32 or BF16 tensor.
template <class Fn>
void with_type(DType dtype, Fn fn) {
  dtype == DType::kBF16 ? fn(BFloat16{}) : fn(float{});
}

// Writes cos and sin of position(t, j) * frequency[j].
template <class Position>
void write_rope(ThreadPool& pool, const std::vector<float>& frequency, DType dtype, const Tensor& y,
                Position position) {
  const auto half = static_cast<int64_t>(frequency.size());
  pool.parallel_for(y.dim(0), rows_of(half * 64), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = y.row<float>(t);
      for (int64_t j = 0; j < half; ++j) {
        // The angle is a float product, as in the reference; only its cosine is taken in double.
        const double angle = static_cast<float>(position(t, j)) * frequency[static_cast<size_t>(j)];
        row[j] = static_cast<float>(std::cos(angle));
        row[half + j] = static_cast<float>(std::sin(angle));
      }
      if (dtype == DType::kBF16) {
        for (int64_t j = 0; j < 2 * half; ++j) row[j] = ref::rounded<BFloat16>(row[j]);
      }
    }
  });
}

float inverse_frequency(double theta, int64_t j, int64_t count) {
  return 1.0F / static_cast<float>(std::pow(theta, static_cast<double>(j) / static_cast<double>(count)));
}

}  // namespace

void embed(ThreadPool& pool, const Tensor& table, const Tensor& ids, const Tensor& y) {
  const int64_t d = table.dim(1);
  with_type(table.dtype, [&]<class From>(From) {
    with_type(y.dtype, [&]<class To>(To) {
      pool.parallel_for(y.dim(0), rows_of(d), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const From* from = table.row<From>(ids.as<int32_t>()[t]);
          To* to = y.row<To>(t);
          for (int64_t i = 0; i < d; ++i) to[i] = To(static_cast<float>(from[i]));
        }
      });
    });
  });
}

void gather_rows(ThreadPool& pool, const Tensor& x, const Tensor& index, const Tensor& y) {
  const auto bytes = static_cast<size_t>(x.dim(1)) * dtype_size(x.dtype);
  pool.parallel_for(y.dim(0), rows_of(x.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto from = static_cast<size_t>(index.as<int32_t>()[i]);
      std::memcpy(static_cast<std::byte*>(y.data) + static_cast<size_t>(i) * bytes,
                  static_cast<const std::byte*>(x.data) + from * bytes, bytes);
    }
  });
}

void rms_norm(ThreadPool& pool, const Tensor& x, const Tensor& w, float eps, const Tensor& y) {
  with_type(x.dtype, [&]<class T>(T) {
    const auto norm = kernels().of<T>().rms_norm;
    pool.parallel_for(x.dim(0), rows_of(x.dim(1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) norm(x.row<T>(t), w.as<T>(), y.row<T>(t), x.dim(1), eps);
    });
  });
}

void layer_norm(ThreadPool& pool, const Tensor& x, const Tensor& w, const Tensor& b, float eps, const Tensor& y) {
  with_type(x.dtype, [&]<class T>(T) {
    const auto norm = kernels().of<T>().layer_norm;
    pool.parallel_for(x.dim(0), rows_of(x.dim(1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) norm(x.row<T>(t), w.as<T>(), b.as<T>(), y.row<T>(t), x.dim(1), eps);
    });
  });
}

void gelu(ThreadPool& pool, const Tensor& x, const Tensor& y) {
  with_type(x.dtype, [&]<class T>(T) {
    const auto row = kernels().of<T>().gelu;
    pool.parallel_for(x.numel(), rows_of(1),
                      [&](int64_t begin, int64_t end) { row(x.as<T>() + begin, y.as<T>() + begin, end - begin); });
  });
}

void gelu_tanh(ThreadPool& pool, const Tensor& x, const Tensor& y) {
  with_type(x.dtype, [&]<class T>(T) {
    const auto row = kernels().of<T>().gelu_tanh;
    pool.parallel_for(x.numel(), rows_of(1),
                      [&](int64_t begin, int64_t end) { row(x.as<T>() + begin, y.as<T>() + begin, end - begin); });
  });
}

void add_rows(ThreadPool& pool, const Tensor& h, const Tensor& rows) {
  with_type(h.dtype, [&]<class T>(T) {
    const auto add = kernels().of<T>().add;
    pool.parallel_for(h.dim(0), rows_of(h.dim(1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) add(h.row<T>(t), rows.row<T>(t % rows.dim(0)), h.dim(1));
    });
  });
}

void unfold(ThreadPool& pool, const Tensor& x, int64_t k, const Tensor& y) {
  const int64_t height = x.dim(1), width = x.dim(2), d = x.dim(3), rows = y.dim(1), columns = y.dim(2), places = k * k;
  with_type(x.dtype, [&]<class T>(T) {
    pool.parallel_for(x.dim(0) * rows * columns, rows_of(d * places), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t top = i / columns % rows * k, left = i % columns * k;
        T* to = y.as<T>() + i * d * places;
        for (int64_t place = 0; place < places; ++place, ++to) {
          const int64_t row = top + place / k, column = left + place % k;
          if (row < height && column < width) {
            const T* from = x.as<T>() + ((i / columns / rows * height + row) * width + column) * d;
            for (int64_t c = 0; c < d; ++c) to[c * places] = from[c];
          } else {
            for (int64_t c = 0; c < d; ++c) to[c * places] = T(0.0F);
          }
        }
      }
    });
  });
}

void rope_table(ThreadPool& pool, const Tensor& positions, std::span<const int64_t> sections, double theta, DType dtype,
                const Tensor& y) {
  std::vector<float> frequency;
  std::vector<int64_t> axis;
  const int64_t half = y.dim(2);
  for (size_t a = 0; a < sections.size(); ++a)
    axis.insert(axis.end(), static_cast<size_t>(sections[a]), static_cast<int64_t>(a));
  for (int64_t j = 0; j < half; ++j) frequency.push_back(inverse_frequency(theta, j, half));
  write_rope(pool, frequency, dtype, y,
             [&](int64_t t, int64_t j) { return positions.row<int32_t>(axis[static_cast<size_t>(j)])[t]; });
}

void vision_rope_table(ThreadPool& pool, const Tensor& positions, double theta, const Tensor& y) {
  std::vector<float> frequency;
  const int64_t half = y.dim(2), quarter = half / 2;
  for (int64_t j = 0; j < half; ++j) frequency.push_back(inverse_frequency(theta, j % quarter, quarter));
  write_rope(pool, frequency, DType::kF32, y,
             [&](int64_t p, int64_t j) { return positions.row<int32_t>(j < quarter ? 0 : 1)[p]; });
}

void qkv_rope_append(ThreadPool& pool, const Tensor& qkv, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& kv_layer, const Tensor& q) {
  const int64_t heads = q.dim(1), dim = q.dim(2), kv_heads = kv_layer.dim(2), page_tokens = kv_layer.dim(3);
  with_type(qkv.dtype, [&]<class T>(T) {
    const auto rope = kernels().of<T>().rope_round_each;
    pool.parallel_for(qkv.dim(0), rows_of(qkv.dim(1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* from = qkv.row<T>(t);
        const float* turn = cos_sin.row<float>(t);
        for (int64_t h = 0; h < heads; ++h) rope(from + h * dim, turn, q.row<T>(t) + h * dim, dim);
        const int64_t page = slots.as<int32_t>()[t] / page_tokens, place = slots.as<int32_t>()[t] % page_tokens;
        for (int64_t h = 0; h < kv_heads; ++h) {
          const T* k = from + (heads + h) * dim;
          T* k_to = kv_layer.row<T>(page) + h * kv_layer.stride[2] + place * dim;
          rope(k, turn, k_to, dim);
          std::memcpy(k_to + kv_layer.stride[1], k + kv_heads * dim, static_cast<size_t>(dim) * sizeof(T));
        }
      }
    });
  });
}

void vision_rope(ThreadPool& pool, const Tensor& qkv, const Tensor& cos_sin) {
  const int64_t heads = qkv.dim(2), dim = qkv.dim(3);
  with_type(qkv.dtype, [&]<class T>(T) {
    const auto rope = kernels().of<T>().rope;
    pool.parallel_for(qkv.dim(0), rows_of(2 * heads * dim), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < 2 * heads; ++h) {  // q and k
          T* x = qkv.row<T>(t) + h * dim;
          rope(x, cos_sin.row<float>(t), x, dim);
        }
      }
    });
  });
}

}  // namespace saccade::cpu
