// saccade doctor: what this machine has, what it can do, and what Saccade will use of it.
#include <fmt/format.h>

#include <iterator>
#include <string>

#include "base/thread_pool.h"
#include "build_info.h"
#include "console.h"
#include "flags.h"
#include "kernels/cpu/kernels.h"
#include "machine_probe.h"
#include "media/libraries.h"
#include "session.h"
#include "system_info.h"
#include "tensor/device.h"

namespace saccade::apps {
namespace {

Json examine(int threads) {
  ThreadPool pool(threads);
  const SystemMemory memory = system_memory();
  Json features = Json::object();
  for (const auto& feature : cpu_features()) features[feature.name] = feature.present;
  Json libraries = Json::object();
  for (const auto& library : media::libraries()) libraries[library.name] = library.version;
  Json devices = Json::array();
  for (const device::Info& info : device::list())
    devices.push_back({{"name", info.name}, {"total_bytes", info.total_bytes}, {"free_bytes", info.free_bytes}});
  // Half of the free memory is plenty on a small machine.
  const size_t buffer = std::min(size_t{1} << 30, std::max(size_t{64} << 20, memory.available / 2));
  const double bandwidth = measure_read_bandwidth(pool, 0.6, buffer);
  const Peak bf16 = measure_bf16_peak(pool, 0.2), f32 = measure_f32_peak(pool, 0.2);
  return {{"saccade", {{"version", kVersion}, {"commit", kCommit}, {"compiler", kCompiler}, {"build", kBuildType}}},
          {"system", system_name()},
          {"cpu", {{"model", cpu_model()}, {"cores", available_cores()}, {"features", features}}},
          {"kernels", cpu::kernels().name},
          {"memory",
           {{"total_bytes", memory.total},
            {"available_bytes", memory.available},
            {"transparent_huge_pages", memory.transparent_huge_pages},
            {"huge_pages", memory.huge_pages},
            {"huge_page_bytes", memory.huge_page_bytes}}},
          {"measured",
           {{"threads", pool.size()},
            {"read_bytes_per_second", bandwidth},
            {"bf16", {{"instruction", bf16.instruction}, {"flops", bf16.flops}}},
            {"f32", {{"instruction", f32.instruction}, {"flops", f32.flops}}}}},
          {"cuda", {{"built", device::kCudaBuilt}, {"devices", devices}}},
          {"libraries", libraries}};
}

std::string describe(const Json& j) {
  std::string text;
  const auto row = [&](const char* key, const std::string& value) {
    fmt::format_to(std::back_inserter(text), "{:<14}{}\n", key, value);
  };
  const auto string = [](const Json& value) { return value.get<std::string>(); };
  const Json &build = j["saccade"], &cpu = j["cpu"], &memory = j["memory"], &measured = j["measured"];
  const Json& devices = j["cuda"]["devices"];
  row("saccade", fmt::format("{} ({}), {}, {}", string(build["version"]), string(build["commit"]),
                             string(build["compiler"]), string(build["build"])));
  row("system", string(j["system"]));
  row("processor", fmt::format("{}, {} cores", string(cpu["model"]), cpu["cores"].get<int>()));
  std::string present, absent;
  for (const auto& [name, has] : cpu["features"].items()) (has.get<bool>() ? present : absent) += " " + name;
  row("features", (present.empty() ? "none" : present.substr(1)) + (absent.empty() ? "" : "; without" + absent));
  row("kernels", string(j["kernels"]) + " (SACCADE_ISA chooses others)");
  row("memory", fmt::format("{}, {} free", human_bytes(memory["total_bytes"].get<size_t>()),
                            human_bytes(memory["available_bytes"].get<size_t>())));
  row("huge pages",
      fmt::format("transparent: {}; reserved: {} of {}", string(memory["transparent_huge_pages"]),
                  memory["huge_pages"].get<size_t>(), human_bytes(memory["huge_page_bytes"].get<size_t>())));
  row("reading", fmt::format("{:.1f} GB/s with {} threads", measured["read_bytes_per_second"].get<double>() / 1e9,
                             measured["threads"].get<int>()));
  for (const char* dtype : {"bf16", "f32"}) {
    const Json& peak = measured[dtype];
    row(dtype,
        fmt::format("{:.0f} GFLOP/s at most ({})", peak["flops"].get<double>() / 1e9, string(peak["instruction"])));
  }
  if (devices.empty()) row("cuda", j["cuda"]["built"].get<bool>() ? "no device found" : "not in this build");
  for (size_t i = 0; i < devices.size(); ++i)
    row(fmt::format("cuda:{}", i).c_str(),
        fmt::format("{}, {}, {} free", string(devices[i]["name"]), human_bytes(devices[i]["total_bytes"].get<size_t>()),
                    human_bytes(devices[i]["free_bytes"].get<size_t>())));
  for (const auto& [name, version] : j["libraries"].items()) row(name.c_str(), string(version));
  return text;
}

}  // namespace

int doctor(const Args& args) {
  CLI::App app("Shows what this machine has and measures, in about two seconds, what it can do.", "saccade doctor");
  bool json = false;
  int threads = 0;
  app.add_flag("--json", json, "print one JSON object");
  app.add_option("-t,--threads", threads, "threads that measure (default: all cores)")
      ->type_name("N")
      ->check(integer_in(0, 4096));
  if (!parse(app, args)) return kOk;
  const Json report = examine(threads);
  print_stdout(json ? dump_json(report) : describe(report));
  return kOk;
}

}  // namespace saccade::apps
