#include "base/memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace saccade {
namespace {

// A tree of files that stands for / of a machine.
class Machine : public testing::Test {
 protected:
  Machine() {
    std::string name = std::filesystem::temp_directory_path() / "saccade-test-XXXXXX";
    root_ = ::mkdtemp(name.data());
    write("/proc/meminfo", "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    8000 kB\nBuffers: 1 kB\n");
  }
  ~Machine() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& content) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << content;
  }

  std::string root_;
};

TEST_F(Machine, WithoutControlGroupsIsMemAvailable) {
  EXPECT_EQ(available_memory_bytes(root_), 8000u * 1024);
  write("/proc/self/cgroup", "0::/\n");
  EXPECT_EQ(available_memory_bytes(root_), 8000u * 1024);
}

TEST_F(Machine, WithoutMeminfoIsUnknown) {
  std::filesystem::remove(root_ + "/proc/meminfo");
  EXPECT_EQ(available_memory_bytes(root_), 0u);
}

TEST_F(Machine, Version2LimitsOfEveryLevelCount) {
  write("/proc/self/cgroup", "0::/outer/inner\n");
  write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  write("/sys/fs/cgroup/outer/memory.max", "5000000\n");
  write("/sys/fs/cgroup/outer/memory.current", "3000000\n");
  EXPECT_EQ(available_memory_bytes(root_), 2000000u);
  write("/sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 1500000\nactive_file 1\n");
  EXPECT_EQ(available_memory_bytes(root_), 3500000u);
  write("/sys/fs/cgroup/outer/inner/memory.max", "1000000\n");
  write("/sys/fs/cgroup/outer/inner/memory.current", "400000\n");
  EXPECT_EQ(available_memory_bytes(root_), 600000u);
  write("/sys/fs/cgroup/outer/inner/memory.current", "1400000\n");  // over its limit for a moment
  EXPECT_EQ(available_memory_bytes(root_), 0u);
}

TEST_F(Machine, Version1InAContainerSeesItsRoot) {
  write("/proc/self/cgroup", "5:cpu:/docker/abc\n4:hugetlb,memory:/docker/abc\nnonsense\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n");
  write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n");
  write("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 250000\n");
  EXPECT_EQ(available_memory_bytes(root_), 3250000u);
}

TEST_F(Machine, AGenerousLimitLeavesMemAvailable) {
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/memory.max", "99000000000\n");
  EXPECT_EQ(available_memory_bytes(root_), 8000u * 1024);
}

TEST(Memory, ThisMachineHasSome) { EXPECT_GT(available_memory_bytes(), 0u); }

}  // namespace
}  // namespace saccade
