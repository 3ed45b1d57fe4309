#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "kernels/cpu/kernels.h"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace saccade::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

#if defined(__x86_64__)
// Linux hands out the tile registers on request only.
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  return (d & kBf16) && (d & kTile) && request_tiles();
}

bool supports(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return supports(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return supports(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx:
      return supports(Isa::kAvx512Bf16) && has_amx();
  }
  return false;
}

const Kernels& table(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      break;
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
    case Isa::kAmx:
      return kAmxKernels;
  }
  return kPortableKernels;
}
#else
bool supports(Isa isa) { return isa == Isa::kPortable; }
const Kernels& table(Isa) { return kPortableKernels; }
#endif

const Kernels*& current() {
  static const Kernels* kernels = [] {
    const char* wanted = std::getenv("SACCADE_ISA");
    if (!wanted || !*wanted) return &table(supported_isas().back());
    for (const Isa isa : supported_isas()) {
      if (std::string_view(wanted) == isa_name(isa)) return &table(isa);
    }
    std::string known;
    for (const Isa isa : supported_isas()) known += fmt::format("{}{}", known.empty() ? "" : ", ", isa_name(isa));
    fail("SACCADE_ISA={}: this CPU runs {}", wanted, known);
  }();
  return kernels;
}

}  // namespace

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAll) {
    if (supports(isa)) isas.push_back(isa);
  }
  return isas;
}

const Kernels& kernels() { return *current(); }

void use_isa(Isa isa) { current() = &table(isa); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512-bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

}  // namespace saccade::cpu
