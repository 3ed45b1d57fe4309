// DeviceSampler: the next tokens of a step from logits that are on a CUDA device; only ids come back.
#pragma once

#include <span>

#include "engine/sequence.h"
#include "engine/step_inputs.h"
#include "ops/ops.h"

namespace saccade {

class DeviceSampler {
 public:
  // logits [R,V], row i of sequences[i]. Waits for the device -> ids [R], -1 where no token can be chosen.
  std::span<const int32_t> sample(const Ctx& c, const Tensor& logits, std::span<const Sequence* const> sequences);

 private:
  StepInputs inputs_{Memory::kCuda};
  Buffer ids_;  // pinned
};

}  // namespace saccade
