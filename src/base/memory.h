// How much memory this process may still take, and what it does with memory it is done with.
#pragma once

#include <cstddef>
#include <string>

namespace saccade {

// The smaller of the machine's available memory (MemAvailable of /proc/meminfo: free, and cache that can be dropped)
// and what the memory limits of this process's control groups leave. `root` stands before /proc and /sys, for tests.
// 0 when nothing can be read.
size_t available_memory_bytes(const std::string& root = "");

// Tells the C library to keep freed blocks of up to 32 MB for reuse. It would give the pixels of a picture back to the
// system and take new pages for the next one, which costs as much time as decoding (most in virtual machines). A
// choice for the whole process, so programs make it, not the library.
void keep_freed_memory();

}  // namespace saccade
