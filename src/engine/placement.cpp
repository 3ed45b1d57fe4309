#include "engine/placement.h"

#include <charconv>

#include "base/error.h"
#include "base/memory.h"

namespace saccade {
namespace {

// What the driver, the kernels' code and small workspaces take beside what is planned.
constexpr size_t kReserved = size_t{1} << 30;

Placement on_cpu() { return {.name = "cpu", .available = available_memory_bytes()}; }

Placement on_cuda(int index, const device::Info& info) {
  return {.memory = Memory::kCuda,
          .index = index,
          .name = fmt::format("cuda:{} ({})", index, info.name),
          .available = info.free_bytes - std::min(kReserved, info.free_bytes)};
}

}  // namespace

Placement place(const std::string& device, const ModelSummary& model) {
  if (device == "cpu") return on_cpu();
  if (device != "auto" && device != "cuda" && !device.starts_with("cuda:"))
    fail("device: expected auto, cpu, cuda or cuda:N, found \"{}\"", device);
  const std::vector<device::Info> devices = device::list();
  if (device == "auto") {
    std::optional<Placement> best;
    for (size_t i = 0; i < devices.size(); ++i) {
      Placement p = on_cuda(static_cast<int>(i), devices[i]);
      if (!best || p.available > best->available) best = std::move(p);
    }
    return model.cuda && best && model.cuda_weight_bytes < best->available ? *best : on_cpu();
  }

  if (!device::kCudaBuilt) fail("device: {} is asked for, this build has no CUDA (preset \"cuda\")", device);
  if (!model.cuda) fail("device: {} runs on the CPU only, in bf16 and f32", model.info.architecture);
  int index = 0;
  if (device != "cuda") {
    const char* end = device.data() + device.size();
    const auto [stop, error] = std::from_chars(device.data() + std::string_view("cuda:").size(), end, index);
    if (error != std::errc() || stop != end || index < 0)
      fail("device: expected a number after \"cuda:\", found \"{}\"", device);
  }
  if (static_cast<size_t>(index) >= devices.size())
    fail("device: {} is not there: {} CUDA devices were found", device, devices.size());
  return on_cuda(index, devices[static_cast<size_t>(index)]);
}

EngineOptions with_defaults(EngineOptions options, const Placement& placement) {
  if (options.max_batch == 0) options.max_batch = placement.cuda() ? 64 : 16;
  if (options.max_batch_tokens == 0)
    options.max_batch_tokens = std::max(placement.cuda() ? 4096 : 512, options.max_batch);
  return options;
}

}  // namespace saccade
