// What the operating system says of this machine.
#pragma once

#include <cstddef>
#include <string>

namespace saccade::apps {

struct SystemMemory {
  size_t total = 0, available = 0;  // bytes; limits of control groups count for `available`
  size_t huge_pages = 0, huge_page_bytes = 0;
  std::string transparent_huge_pages;  // "always", "madvise", "never", "unknown"
};
SystemMemory system_memory();

std::string system_name();  // kernel and machine
std::string utc_now();      // "2025-01-31T12:00:00Z"

}  // namespace saccade::apps
