// Brings mapped weights into the page cache while the model already runs.
#pragma once

#include <cstddef>
#include <span>
#include <thread>
#include <vector>

namespace saccade {

// Loading maps files and touches no page, so a model loads in milliseconds and pages that other processes hold already
// are shared. What is not in the page cache is read when a kernel first touches it. Left to page faults that is slow
// where the system reads ahead little: 0.25 GB/s with Linux's usual window of 128 KB on a disk that gives 1 to 2. So a
// thread asks for the pages in file order, ahead of the faults: 0.8 to 1.4 GB/s there. It asks in steps of that
// window, because MADV_WILLNEED reads no more than the window of a longer range. Over pages that are in memory it takes
// 45 ms per GB.
//
// Not used: MAP_POPULATE and MADV_POPULATE_READ, which would make loading wait for all of the disk; MADV_SEQUENTIAL,
// which makes pages the first to be evicted, while weights are read again for every token.
class ReadAhead {
 public:
  explicit ReadAhead(std::vector<std::span<const std::byte>> ranges);  // mapped for as long as this lives

 private:
  std::jthread thread_;
};

}  // namespace saccade
