// Shape expectations at the door of every op: the first tensor that names a dimension binds it, later ones must agree.
#pragma once

#include "tensor/tensor.h"

namespace saccade {

struct Dim {
  const char* name;
  int64_t size = -1;  // -1: not bound yet

  operator int64_t() const { return size; }
};

class Expect {
 public:
  Expect(const Tensor& tensor, const char* name) : tensor_(tensor), name_(name) {}

  template <class... Dims>
  Expect& shape(Dims&&... dims) {
    CHECK(tensor_.rank == static_cast<int>(sizeof...(dims)), "{}: rank {}, expected {}", name_, tensor_.describe(),
          sizeof...(dims));
    int axis = 0;
    (bind(axis++, dims), ...);
    return *this;
  }
  template <class... Types>
  Expect& dtype(Types... types) {
    CHECK(((tensor_.dtype == types) || ...), "{}: unexpected dtype of {}", name_, tensor_.describe());
    return *this;
  }
  Expect& contiguous() {
    CHECK(tensor_.contiguous(), "{}: {} must be contiguous", name_, tensor_.describe());
    return *this;
  }

 private:
  void bind(int axis, Dim& dim) {
    if (dim.size < 0) dim.size = tensor_.dim(axis);
    CHECK(tensor_.dim(axis) == dim.size, "{}: {} has {} in dimension {} ({}), expected {}", name_, tensor_.describe(),
          tensor_.dim(axis), axis, dim.name, dim.size);
  }
  void bind(int axis, int64_t size) {
    CHECK(tensor_.dim(axis) == size, "{}: {} has {} in dimension {}, expected {}", name_, tensor_.describe(),
          tensor_.dim(axis), axis, size);
  }

  const Tensor& tensor_;
  const char* name_;
};

inline Expect expect(const Tensor& tensor, const char* name) { return {tensor, name}; }

}  // namespace saccade
