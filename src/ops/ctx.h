// Ctx: where an op runs and allocates. Passed, never global.
#pragma once

#include <functional>
#include <string_view>

#include "base/thread_pool.h"
#include "tensor/staging.h"

namespace saccade {

// Receives named intermediates ("vision.block.3", "text.layer.0", ...).
using Tap = std::function<void(std::string_view name, const Tensor& value)>;

struct Ctx {
  ThreadPool& pool;
  Arena& arena;  // outputs of ops live here
  const Tap* on_tap = nullptr;
  // On a CUDA device: arena and all tensors are in its memory, and ops queue their work on the stream.
  Stream stream = nullptr;
  Buffer* kept = nullptr;      // memory that an op keeps from step to step
  Staging* staging = nullptr;  // for what the host uploads; null: uploads wait for the stream

  bool cuda() const { return stream != nullptr; }

  void tap(std::string_view name, const Tensor& value) const {
    if (on_tap) (*on_tap)(name, value);
  }
  void tap(std::string_view name, int index, const Tensor& value) const {
    if (on_tap) (*on_tap)(fmt::format("{}.{}", name, index), value);
  }
};

}  // namespace saccade
