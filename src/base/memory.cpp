#include "base/memory.h"

#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace saccade {
namespace {

// The number that follows `key` in a file of "key value" lines.
std::optional<uint64_t> value_of(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t value = 0;
    if (words >> word && word == key && words >> value) return value;
  }
  return std::nullopt;
}

// "max", an absent file and the like are no limit.
std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream in(path);
  uint64_t value = 0;
  return in >> value ? std::optional(value) : std::nullopt;
}

// What one control group leaves: its limit, less its use, where cache that can be dropped does not count.
uint64_t left_in_group(const std::string& group, const char* limit_file, const char* use_file, const char* cache_key) {
  const auto limit = number_in(group + limit_file);
  if (!limit) return std::numeric_limits<uint64_t>::max();
  const uint64_t use = number_in(group + use_file).value_or(0);
  const uint64_t cache = std::min(use, value_of(group + "/memory.stat", cache_key).value_or(0));
  return *limit - std::min(*limit, use - cache);
}

// A limit of any group above holds too. In a container the path may lie outside what is mounted: its root then speaks.
uint64_t left_in_groups(const std::string& mount, std::string path, const char* limit_file, const char* use_file,
                        const char* cache_key) {
  uint64_t left = left_in_group(mount, limit_file, use_file, cache_key);
  while (!path.empty() && path != "/") {
    left = std::min(left, left_in_group(mount + path, limit_file, use_file, cache_key));
    path.erase(path.rfind('/'));
  }
  return left;
}

uint64_t left_in_all_groups(const std::string& root) {
  uint64_t left = std::numeric_limits<uint64_t>::max();
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1);
    if (!path.starts_with('/')) continue;
    if (controllers == ",,")
      left = std::min(left,
                      left_in_groups(root + "/sys/fs/cgroup", path, "/memory.max", "/memory.current", "inactive_file"));
    else if (controllers.find(",memory,") != controllers.npos)
      left = std::min(left, left_in_groups(root + "/sys/fs/cgroup/memory", path, "/memory.limit_in_bytes",
                                           "/memory.usage_in_bytes", "total_inactive_file"));
  }
  return left;
}

}  // namespace

size_t available_memory_bytes(const std::string& root) {
  const auto kilobytes = value_of(root + "/proc/meminfo", "MemAvailable:");
  if (!kilobytes) return 0;
  return std::min(*kilobytes * 1024, left_in_all_groups(root));
}

void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

}  // namespace saccade
