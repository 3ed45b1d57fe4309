// Staging: pinned memory in which tensors of the host wait for their way to a CUDA device. Without it a copy would hold
// up the host until the stream has come to it.
#pragma once

#include <array>

#include "tensor/arena.h"

namespace saccade {

class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Begins a turn of copies by `stream`, in the memory of the turn before the last one: waits until that was read.
  void begin_turn(Stream stream);
  // `from` may be overwritten at once. What a turn has beyond kMost bytes waits for the stream.
  void copy(void* to, const void* from, size_t bytes, Stream stream);

 private:
  static constexpr size_t kMost = size_t{64} << 20;
  struct Turn {
    Arena memory{size_t{8} << 20, Memory::kPinned};
    size_t used = 0;
    Event read = nullptr;
  };
  std::array<Turn, 2> turns_;
  size_t turn_ = 0;
};

}  // namespace saccade
