// Placement: the device that an engine runs on, from EngineOptions::device.
#pragma once

#include <string>

#include "models/model.h"

namespace saccade {

struct Placement {
  Memory memory = Memory::kHost;
  int index = 0;         // of the CUDA device
  std::string name;      // "cpu", "cuda:0 (NVIDIA H200)"
  size_t available = 0;  // bytes of memory to plan with

  bool cuda() const { return memory == Memory::kCuda; }
};

// "auto" takes the CUDA device with the most free memory when there is one, the model has kernels for it and its
// weights fit; else the CPU. Throws Error when what is asked for by name is not there or cannot run the model.
Placement place(const std::string& device, const ModelSummary& model);

// Fills in what is left to the device.
EngineOptions with_defaults(EngineOptions options, const Placement& placement);

}  // namespace saccade
