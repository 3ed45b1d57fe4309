// Tensor: a view (pointer, dtype, shape, strides) that owns nothing. Owners are Buffer, Arena and mapped files.
//
// Dimension letters of the whole project: T tokens, D hidden, H query heads, K kv heads, Dh head dim, F ffn width,
// V vocabulary, P patches, S kv length, B sequences of a batch, L layers, E experts.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace saccade {

inline constexpr int kMaxRank = 5;

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // in elements

  Tensor() = default;
  // Contiguous, row-major.
  Tensor(const void* data, DType dtype, std::span<const int64_t> shape);
  Tensor(const void* data, DType dtype, std::initializer_list<int64_t> shape)
      : Tensor(data, dtype, std::span<const int64_t>(shape.begin(), shape.size())) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i < 0 ? i + rank : i)]; }
  int64_t numel() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * dtype_size(dtype); }
  bool contiguous() const;

  template <class T>
  T* as() const {
    CHECK(dtype == DTypeOf<T>::value, "tensor is {}, asked for as {}", dtype_name(dtype),
          dtype_name(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }
  // First element of row i of dimension 0.
  template <class T>
  T* row(int64_t i) const {
    return as<T>() + i * stride[0];
  }

  Tensor slice(int64_t begin, int64_t end) const;               // along dimension 0
  Tensor narrow(int axis, int64_t begin, int64_t end) const;    // along any dimension
  Tensor operator[](int64_t i) const;                           // drops dimension 0
  Tensor reshaped(std::initializer_list<int64_t> shape) const;  // contiguous only, same number of elements

  std::string describe() const;  // "BF16[2048, 128]"
};

std::string shape_text(std::span<const int64_t> shape);  // "[2048, 128]"

}  // namespace saccade
