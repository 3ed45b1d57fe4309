#include "tensor/tensor.h"

#include <fmt/ranges.h>

namespace saccade {

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

Tensor::Tensor(const void* pointer, DType type, std::span<const int64_t> dims)
    : data(const_cast<void*>(pointer)), dtype(type), rank(static_cast<int>(dims.size())) {
  CHECK(dims.size() <= kMaxRank, "rank {}", dims.size());
  int64_t step = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    shape[i] = dims[i];
    stride[i] = step;
    step *= dims[i];
  }
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= dim(i);
  return n;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank; i-- > 0;) {
    const auto a = static_cast<size_t>(i);
    if (shape[a] != 1 && stride[a] != step) return false;
    step *= shape[a];
  }
  return true;
}

Tensor Tensor::narrow(int axis, int64_t begin, int64_t end) const {
  const auto a = static_cast<size_t>(axis);
  CHECK(axis >= 0 && axis < rank && 0 <= begin && begin <= end && end <= shape[a], "axis {} [{}, {}) of {}", axis,
        begin, end, describe());
  Tensor t = *this;
  t.data = static_cast<std::byte*>(data) + begin * stride[a] * static_cast<int64_t>(dtype_size(dtype));
  t.shape[a] = end - begin;
  return t;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const { return narrow(0, begin, end); }

Tensor Tensor::operator[](int64_t i) const {
  Tensor t = narrow(0, i, i + 1);
  for (size_t a = 1; a < kMaxRank; ++a) {
    t.shape[a - 1] = t.shape[a];
    t.stride[a - 1] = t.stride[a];
  }
  --t.rank;
  return t;
}

Tensor Tensor::reshaped(std::initializer_list<int64_t> dims) const {
  CHECK(contiguous(), "reshape of a strided tensor {}", describe());
  Tensor t(data, dtype, dims);
  CHECK(t.numel() == numel(), "{} to {}", describe(), t.describe());
  return t;
}

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string Tensor::describe() const {
  return dtype_name(dtype) + shape_text({shape.data(), static_cast<size_t>(rank)});
}

}  // namespace saccade
