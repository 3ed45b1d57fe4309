// StepInputs: the index tensors of a step. Written on the host, read where the model runs; on a CUDA device all of them
// travel in one copy, while the host may write those of the next step.
#pragma once

#include <array>

#include "ops/ctx.h"

namespace saccade {

class StepInputs {
 public:
  explicit StepInputs(Memory memory) : memory_(memory) {}

  // Forgets what was there and makes room. The device has read what was there at the call before.
  void reset(size_t bytes);
  static size_t bytes_of(int64_t numbers) { return (static_cast<size_t>(numbers) * 4 + kAlign - 1) / kAlign * kAlign; }

  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape);  // to be written
  Tensor i32(std::initializer_list<int64_t> shape) { return tensor(DType::kI32, shape); }
  Tensor placed(const Tensor& written) const;  // the same, where ops read it
  // On a CUDA device `ids`, one of the tensors, may hold -1 - i for chosen[i], a token that only the device knows.
  void upload(const Ctx& c, const Tensor& ids, const Tensor& chosen);

 private:
  static constexpr size_t kAlign = 256;

  Memory memory_;
  std::array<Buffer, 2> host_;  // in turns
  size_t turn_ = 0;
  Buffer device_;
  size_t used_ = 0;
};

}  // namespace saccade
