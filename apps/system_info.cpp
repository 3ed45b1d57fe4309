#include "system_info.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/utsname.h>

#include <ctime>
#include <fstream>
#include <sstream>

#include "base/memory.h"

namespace saccade::apps {
namespace {

// "always [madvise] never" -> "madvise"
std::string chosen(const std::string& line) {
  const size_t begin = line.find('['), end = line.find(']');
  return begin == std::string::npos || end == std::string::npos ? "unknown" : line.substr(begin + 1, end - begin - 1);
}

}  // namespace

SystemMemory system_memory() {
  SystemMemory memory;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    std::istringstream words(line);
    std::string key;
    size_t value = 0;
    if (!(words >> key >> value)) continue;
    if (key == "MemTotal:") memory.total = value << 10;
    if (key == "HugePages_Total:") memory.huge_pages = value;
    if (key == "Hugepagesize:") memory.huge_page_bytes = value << 10;
  }
  memory.available = available_memory_bytes();
  std::ifstream thp("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(thp, line);
  memory.transparent_huge_pages = chosen(line);
  return memory;
}

std::string system_name() {
  struct utsname name {};
  if (::uname(&name) != 0) return "unknown";
  return fmt::format("{} {} {}", name.sysname, name.release, name.machine);
}

std::string utc_now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

}  // namespace saccade::apps
