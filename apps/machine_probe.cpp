#include "machine_probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace saccade::apps {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Results of the loops end here, so that no compiler removes them.
std::atomic<uint64_t> g_sink{0};

// Repeats pass() for about `seconds`, at least three times; returns the shortest.
double best_pass(double seconds, const std::function<void()>& pass) {
  double best = 1e30;
  const auto start = Clock::now();
  for (int i = 0; i < 3 || seconds_since(start) < seconds; ++i) {
    const auto begin = Clock::now();
    pass();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) fail("cannot allocate {} bytes to measure read bandwidth", bytes);
    ::madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~Pages() { ::munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

using ReadFn = uint64_t (*)(const uint8_t* data, size_t bytes);  // bytes is a multiple of 1024
using FlopsFn = double (*)(int64_t rounds, float seed);          // returns something of every accumulator

uint64_t read_plain(const uint8_t* data, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8) {
    for (size_t j = 0; j < 8; ++j) sum[j] ^= words[i + j];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

// Independent accumulators, started differently so that none are merged: two ports at latency 4 (FMA) to 6 (bf16)
// need 8 to 12.
constexpr int kChains = 12, kChains512 = 16;  // GCC unrolls loops of up to 16
constexpr double kScalarFlops = kChains * 2.0;

double fma_scalar(int64_t rounds, float seed) {
  float acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = static_cast<float>(i);
  for (int64_t r = 0; r < rounds; ++r) {
    for (float& a : acc) a = a * seed + 1.0f;
  }
  double sum = 0;
  for (const float a : acc) sum += static_cast<double>(a);
  return sum;
}

#if defined(__x86_64__)

struct CpuidWords {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

CpuidWords cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidWords w;
  if (!__get_cpuid_count(leaf, subleaf, &w.a, &w.b, &w.c, &w.d)) return {};
  return w;
}

bool bit(uint32_t word, int n) { return ((word >> n) & 1) != 0; }

// The kernel hands out the tile registers on request (Linux 5.16 and later).
bool amx_usable() {
  const uint32_t d = cpuid(7, 0).d;
  constexpr int kBf16 = 22, kTile = 24;
  if (!bit(d, kBf16) || !bit(d, kTile)) return false;
  constexpr long kReqXcompPerm = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kReqXcompPerm, kTileData) == 0;
}

__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* data, size_t bytes) {
  __m256i sum[8] = {};
  for (size_t i = 0; i < bytes; i += 256) {
    for (size_t j = 0; j < 8; ++j) {
      sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + j * 32)));
    }
  }
  for (size_t j = 1; j < 8; ++j) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0) ^ _mm256_extract_epi64(sum[0], 3));
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t* data, size_t bytes) {
  __m512i sum[8] = {};
  for (size_t i = 0; i < bytes; i += 512) {
    for (size_t j = 0; j < 8; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(data + i + j * 64));
  }
  for (size_t j = 1; j < 8; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, sum[0]);
  return words[0] ^ words[7];
}

constexpr double kAvx2Flops = kChains * 8 * 2.0;

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t rounds, float seed) {
  __m256 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(seed), one = _mm256_set1_ps(1.0f);
  for (int64_t r = 0; r < rounds; ++r) {
    for (auto& x : acc) x = _mm256_fmadd_ps(x, a, one);
  }
  double sum = 0;
  for (const auto& x : acc) sum += static_cast<double>(_mm256_cvtss_f32(x));
  return sum;
}

constexpr double kAvx512Flops = kChains512 * 16 * 2.0;

__attribute__((target("avx512f"))) double fma_avx512(int64_t rounds, float seed) {
  __m512 acc[kChains512];
  for (int i = 0; i < kChains512; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(seed), one = _mm512_set1_ps(1.0f);
  for (int64_t r = 0; r < rounds; ++r) {
    for (auto& x : acc) x = _mm512_fmadd_ps(x, a, one);
  }
  double sum = 0;
  for (const auto& x : acc) sum += static_cast<double>(_mm512_cvtss_f32(x));
  return sum;
}

constexpr double kAvx512Bf16Flops = kChains512 * 32 * 2.0;

__attribute__((target("avx512f,avx512bf16"))) double dot_avx512_bf16(int64_t rounds, float seed) {
  __m512 acc[kChains512];
  for (int i = 0; i < kChains512; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 s = _mm512_set1_ps(seed);
  const __m512bh a = _mm512_cvtne2ps_pbh(s, s), b = a;
  for (int64_t r = 0; r < rounds; ++r) {
    for (auto& x : acc) x = _mm512_dpbf16_ps(x, a, b);
  }
  double sum = 0;
  for (const auto& x : acc) sum += static_cast<double>(_mm512_cvtss_f32(x));
  return sum;
}

constexpr double kAmxFlops = 4 * 16 * 16 * 32 * 2.0;

// Four 16x16 accumulators from two tiles of A and two of B, as a matrix product uses them.
__attribute__((target("amx-tile,amx-bf16"))) double dot_amx_bf16(int64_t rounds, float) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = 16;
  }
  alignas(64) uint16_t ones[16 * 32];
  std::fill(std::begin(ones), std::end(ones), uint16_t{0x3f80});
  alignas(64) float out[16 * 16];
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  double sum = 0;
  _tile_stored(0, out, 64);
  sum += static_cast<double>(out[0]);
  _tile_stored(1, out, 64);
  sum += static_cast<double>(out[0]);
  _tile_stored(2, out, 64);
  sum += static_cast<double>(out[0]);
  _tile_stored(3, out, 64);
  sum += static_cast<double>(out[0]);
  _tile_release();
  return sum;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
bool has_avx512_bf16() { return has_avx512() && bit(cpuid(7, 1).a, 5); }

#endif

ReadFn pick_read() {
#if defined(__x86_64__)
  if (has_avx512()) return read_avx512;
  if (has_avx2()) return read_avx2;
#endif
  return read_plain;
}

struct FlopsLoop {
  const char* instruction;
  FlopsFn run;
  double flops_per_round;  // of one worker
};

FlopsLoop pick_f32() {
#if defined(__x86_64__)
  if (has_avx512()) return {"avx512-fma", fma_avx512, kAvx512Flops};
  if (has_avx2()) return {"avx2-fma", fma_avx2, kAvx2Flops};
#endif
  return {"scalar", fma_scalar, kScalarFlops};
}

FlopsLoop pick_bf16() {
#if defined(__x86_64__)
  if (amx_usable()) return {"amx-bf16", dot_amx_bf16, kAmxFlops};
  if (has_avx512_bf16()) return {"avx512-bf16", dot_avx512_bf16, kAvx512Bf16Flops};
#endif
  return pick_f32();
}

Peak measure(ThreadPool& pool, const FlopsLoop& loop, double seconds) {
  // A pass of about 2 ms: long beside the start of the workers, short beside other programs' time slices.
  int64_t rounds = 1000;
  const auto pass = [&] { pool.run([&](int) { g_sink += static_cast<uint64_t>(loop.run(rounds, 0.5f) != 0.0); }); };
  while (rounds < (int64_t{1} << 40) && best_pass(0, pass) < 0.002) rounds *= 2;
  const double best = best_pass(seconds, pass);
  return {loop.flops_per_round * static_cast<double>(rounds) * pool.size() / best, loop.instruction};
}

}  // namespace

void read_memory(ThreadPool& pool, const void* data, size_t bytes) {
  const size_t share = bytes / static_cast<size_t>(pool.size()) / 1024 * 1024;
  const ReadFn read = pick_read();
  pool.run([&](int worker) {
    g_sink += read(static_cast<const uint8_t*>(data) + static_cast<size_t>(worker) * share, share);
  });
}

double measure_read_bandwidth(ThreadPool& pool, double seconds, size_t bytes) {
  constexpr size_t kBlock = size_t{1} << 20;
  const auto workers = static_cast<size_t>(pool.size());
  const size_t share = std::max(kBlock, bytes / workers / kBlock * kBlock);
  const Pages pages(share * workers);
  pool.run([&](int worker) {  // each worker touches its own share first, so that it lies near its core
    uint8_t* begin = pages.data() + static_cast<size_t>(worker) * share;
    std::fill(begin, begin + share, uint8_t{1});
  });
  const double best = best_pass(seconds, [&] { read_memory(pool, pages.data(), share * workers); });
  return static_cast<double>(share * workers) / best;
}

Peak measure_bf16_peak(ThreadPool& pool, double seconds) { return measure(pool, pick_bf16(), seconds); }

Peak measure_f32_peak(ThreadPool& pool, double seconds) { return measure(pool, pick_f32(), seconds); }

std::vector<CpuFeature> cpu_features() {
#if defined(__x86_64__)
  return {{"avx2", has_avx2()},
          {"f16c", bit(cpuid(1, 0).c, 29)},
          {"avx512f", has_avx512()},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512vnni", has_avx512() && bit(cpuid(7, 0).c, 11)},
          {"avx512bf16", has_avx512_bf16()},
          {"amx-bf16", amx_usable()}};
#else
  return {};
#endif
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

}  // namespace saccade::apps
