// StepInputs: the index tensors of a step. Written on the host, read where the model runs; on a CUDA device all of them
// travel in one copy.
#pragma once

#include "tensor/arena.h"

namespace saccade {

class StepInputs {
 public:
  explicit StepInputs(Memory memory) : memory_(memory) {}

  // Forgets what was there and makes room. The device has read what was there.
  void reset(size_t bytes);
  static size_t bytes_of(int64_t numbers) { return (static_cast<size_t>(numbers) * 4 + kAlign - 1) / kAlign * kAlign; }

  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape);  // to be written
  Tensor i32(std::initializer_list<int64_t> shape) { return tensor(DType::kI32, shape); }
  Tensor placed(const Tensor& written) const;  // the same, where ops read it
  void upload(Stream stream);

 private:
  static constexpr size_t kAlign = 256;

  Memory memory_;
  Buffer host_, device_;
  size_t used_ = 0;
};

}  // namespace saccade
