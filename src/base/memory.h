// How much memory this process may still take.
#pragma once

#include <cstddef>
#include <string>

namespace saccade {

// The smaller of the machine's available memory (MemAvailable of /proc/meminfo: free, and cache that can be dropped)
// and what the memory limits of this process's control groups leave. `root` stands before /proc and /sys, for tests.
// 0 when nothing can be read.
size_t available_memory_bytes(const std::string& root = "");

}  // namespace saccade
