#include "engine/step_inputs.h"

#include "ops/ops.h"

namespace saccade {

void StepInputs::reset(size_t bytes) {
  used_ = 0;
  turn_ = 1 - turn_;
  const bool cuda = memory_ == Memory::kCuda;
  if (bytes > host_[turn_].size()) host_[turn_] = Buffer(2 * bytes, cuda ? Memory::kPinned : Memory::kHost);
  if (cuda && device_.size() < host_[turn_].size()) device_ = Buffer(host_[turn_].size(), Memory::kCuda);
}

Tensor StepInputs::tensor(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t(host_[turn_].data() + used_, dtype, shape);
  used_ += (t.bytes() + kAlign - 1) / kAlign * kAlign;
  CHECK(used_ <= host_[turn_].size(), "step inputs of {} bytes, {} reserved", used_, host_[turn_].size());
  return t;
}

Tensor StepInputs::placed(const Tensor& written) const {
  if (memory_ != Memory::kCuda) return written;
  Tensor t = written;
  t.data = device_.data() + (static_cast<std::byte*>(written.data) - host_[turn_].data());
  return t;
}

void StepInputs::upload(const Ctx& c, const Tensor& ids, const Tensor& chosen) {
  if (memory_ != Memory::kCuda) return;
  const auto count = static_cast<int64_t>(used_ / sizeof(int32_t));
  ops::fetch_(c, Tensor(device_.data(), DType::kI32, {count}), Tensor(host_[turn_].data(), DType::kI32, {count}),
              placed(ids), chosen);
}

}  // namespace saccade
