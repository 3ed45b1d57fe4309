#include "bench/machine.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace saccade::bench {
namespace {

std::atomic<float> sink;

// Twelve independent sums hide the latency of a multiply-add; the compiler must take them for used.
#define KEEP_TWELVE(constraint)                                                                                \
  __asm__ volatile(""                                                                                          \
                   : constraint(a), constraint(b), constraint(c), constraint(d), constraint(e), constraint(f), \
                     constraint(g), constraint(h), constraint(j), constraint(k), constraint(l), constraint(m))

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float read_all_512(const std::byte* p, size_t bytes) {
  __m512 sum[8] = {};
  for (size_t i = 0; i + 512 <= bytes; i += 512) {
    for (size_t j = 0; j < 8; ++j) {
      __builtin_prefetch(p + i + j * 64 + 4096, 0, 2);
      sum[j] = _mm512_add_ps(sum[j], _mm512_loadu_ps(p + i + j * 64));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm512_add_ps(sum[0], sum[j]);
  return sum[0][0];
}

__attribute__((target("avx2"))) float read_all_256(const std::byte* p, size_t bytes) {
  __m256 sum[8] = {};
  for (size_t i = 0; i + 512 <= bytes; i += 256) {
    for (size_t j = 0; j < 8; ++j) {
      __builtin_prefetch(p + i + j * 32 + 4096, 0, 2);
      sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(reinterpret_cast<const float*>(p + i + j * 32)));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_add_ps(sum[0], sum[j]);
  return sum[0][0];
}

__attribute__((target("avx512f,avx512bf16"))) float dots_512(int64_t count) {
  const __m512bh x = {};
  __m512 a = {}, b = a, c = a, d = a, e = a, f = a, g = a, h = a, j = a, k = a, l = a, m = a;
  for (int64_t i = 0; i < count; ++i) {
    for (__m512* s : {&a, &b, &c, &d, &e, &f, &g, &h, &j, &k, &l, &m}) *s = _mm512_dpbf16_ps(*s, x, x);
    KEEP_TWELVE("+v");
  }
  return (a + b + c + d + e + f + g + h + j + k + l + m)[0];
}

__attribute__((target("avx512f"))) float fmas_512(int64_t count) {
  const __m512 x = _mm512_set1_ps(0.5F);
  __m512 a = {}, b = a, c = a, d = a, e = a, f = a, g = a, h = a, j = a, k = a, l = a, m = a;
  for (int64_t i = 0; i < count; ++i) {
    for (__m512* s : {&a, &b, &c, &d, &e, &f, &g, &h, &j, &k, &l, &m}) *s = _mm512_fmadd_ps(x, x, *s);
    KEEP_TWELVE("+v");
  }
  return (a + b + c + d + e + f + g + h + j + k + l + m)[0];
}

__attribute__((target("avx2,fma"))) float fmas_256(int64_t count) {
  const __m256 x = _mm256_set1_ps(0.5F);
  __m256 a = {}, b = a, c = a, d = a, e = a, f = a, g = a, h = a, j = a, k = a, l = a, m = a;
  for (int64_t i = 0; i < count; ++i) {
    for (__m256* s : {&a, &b, &c, &d, &e, &f, &g, &h, &j, &k, &l, &m}) *s = _mm256_fmadd_ps(x, x, *s);
    KEEP_TWELVE("+x");
  }
  return (a + b + c + d + e + f + g + h + j + k + l + m)[0];
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTiles;

// Four sums of tiles, each 16 x 16 x 32 multiply-adds a step.
__attribute__((target("amx-tile,amx-bf16"))) float dots_tiles(int64_t count) {
  _tile_loadconfig(&kTiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < count; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return 0;
}

#endif

float read_any(const std::byte* p, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) sum += *reinterpret_cast<const uint64_t*>(p + i);
  return static_cast<float>(sum);
}

template <class Fn>
double rate(ThreadPool& pool, double per_call, Fn fn) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) best = std::min(best, seconds([&] { pool.run([&](int) { sink = fn(); }); }));
  return per_call * pool.size() / best;
}

}  // namespace

double read_seconds(ThreadPool& pool, const std::byte* data, size_t bytes) {
  auto read = read_any;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) read = read_all_256;
  if (__builtin_cpu_supports("avx512f")) read = read_all_512;
#endif
  const size_t share = bytes / static_cast<size_t>(pool.size()) / 4096 * 4096;
  return seconds(
      [&] { pool.run([&](int worker) { sink = read(data + static_cast<size_t>(worker) * share, share); }); });
}

Peak compute_peak(ThreadPool& pool, bool tiles) {
  constexpr int64_t kCount = 1000000;
#if defined(__x86_64__)
  if (tiles) {
    return {"tdpbf16ps", rate(pool, 4.0 * 2 * 16 * 16 * 32 * kCount / 10, [] { return dots_tiles(kCount / 10); }),
            rate(pool, 12.0 * 32 * kCount, [] { return fmas_512(kCount); })};
  }
  if (__builtin_cpu_supports("avx512bf16")) {
    return {"vdpbf16ps", rate(pool, 12.0 * 64 * kCount, [] { return dots_512(kCount); }),
            rate(pool, 12.0 * 32 * kCount, [] { return fmas_512(kCount); })};
  }
  if (__builtin_cpu_supports("avx2")) {
    const double f32 = rate(pool, 12.0 * 16 * kCount, [] { return fmas_256(kCount); });
    return {"vfmadd", f32, f32};
  }
#endif
  return {"unknown", 0, 0};
}

}  // namespace saccade::bench
