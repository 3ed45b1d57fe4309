#include "engine/step_inputs.h"

namespace saccade {

void StepInputs::reset(size_t bytes) {
  used_ = 0;
  if (bytes <= host_.size()) return;
  const bool cuda = memory_ == Memory::kCuda;
  host_ = Buffer(2 * bytes, cuda ? Memory::kPinned : Memory::kHost);
  if (cuda) device_ = Buffer(2 * bytes, Memory::kCuda);
}

Tensor StepInputs::tensor(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t(host_.data() + used_, dtype, shape);
  used_ += (t.bytes() + kAlign - 1) / kAlign * kAlign;
  CHECK(used_ <= host_.size(), "step inputs of {} bytes, {} reserved", used_, host_.size());
  return t;
}

Tensor StepInputs::placed(const Tensor& written) const {
  if (memory_ != Memory::kCuda) return written;
  Tensor t = written;
  t.data = device_.data() + (static_cast<std::byte*>(written.data) - host_.data());
  return t;
}

void StepInputs::upload(Stream stream) {
  if (memory_ == Memory::kCuda) device::copy(device_.data(), host_.data(), used_, stream);
}

}  // namespace saccade
