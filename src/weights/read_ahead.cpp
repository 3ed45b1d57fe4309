#include "weights/read_ahead.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/memory.h"

namespace saccade {
namespace {

constexpr size_t kStep = size_t{128} << 10;

void ask_for(const std::vector<std::span<const std::byte>>& ranges, const std::stop_token& stop) {
  for (const auto range : ranges)
    for (size_t at = 0; at < range.size() && !stop.stop_requested(); at += kStep)
      ::madvise(const_cast<std::byte*>(range.data()) + at, std::min(kStep, range.size() - at), MADV_WILLNEED);
}

}  // namespace

ReadAhead::ReadAhead(std::vector<std::span<const std::byte>> ranges) {
  size_t bytes = 0;
  for (const auto range : ranges) bytes += range.size();
  // More than memory holds: what is read early would push out what is needed now.
  if (bytes > available_memory_bytes()) return;
  thread_ = std::jthread([ranges = std::move(ranges)](const std::stop_token& stop) { ask_for(ranges, stop); });
}

}  // namespace saccade
