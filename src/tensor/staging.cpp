#include "tensor/staging.h"

#include <cstring>

namespace saccade {

Staging::~Staging() {
  for (const Turn& turn : turns_)
    if (turn.read) device::delete_event(turn.read);
}

void Staging::begin_turn(Stream stream) {
  Turn& last = turns_[turn_];
  if (!last.read) last.read = device::new_event();
  device::record(last.read, stream);
  turn_ = 1 - turn_;
  Turn& turn = turns_[turn_];
  if (turn.read) device::wait(turn.read);
  turn.memory.reset();
  turn.used = 0;
}

void Staging::copy(void* to, const void* from, size_t bytes, Stream stream) {
  Turn& turn = turns_[turn_];
  if (bytes <= kMost - turn.used) {
    turn.used += bytes;
    from = std::memcpy(turn.memory.allocate(bytes), from, bytes);
  }
  device::copy(to, from, bytes, stream);
}

}  // namespace saccade
