// Times the ops on the shapes of real models and prints each against the bound measured in the same run: memory
// bandwidth for few rows, multiply-add peak for many.
//   ops_bench [THREADS] [SECTION ...]   sections: decode prefill attention rows (all when none is named)
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "kernels/cpu/kernels.h"
#include "ops/ops.h"

namespace saccade::bench {
namespace {

void fill(const Tensor& x, uint32_t seed) {
  auto* p = x.as<BFloat16>();
  uint32_t state = seed * 2654435761u + 1;
  for (int64_t i = 0; i < x.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    p[i] = BFloat16(static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-24F);
  }
}

struct Bench {
  ThreadPool pool;
  Arena arena;
  double bandwidth = 0;
  Peak peak{};

  explicit Bench(int threads) : pool(threads) {}

  void report(const std::string& what, double seconds, double bytes, double flops) {
    const double of_bandwidth = bytes / seconds / bandwidth, of_peak = flops / seconds / peak.bf16_flops;
    fmt::print("{:<44} {:>9.3f} ms {:>8.1f} GB/s ({:>5.1f}%) {:>8.1f} GFLOP/s ({:>5.1f}%)\n", what, seconds * 1e3,
               bytes / seconds / 1e9, of_bandwidth * 100, flops / seconds / 1e9, of_peak * 100);
  }

  double time(const std::function<void(const Ctx&)>& op, int rounds = 7) {
    return best_seconds(rounds, [&] {
      arena.reset();
      op(Ctx{pool, arena});
    });
  }
};

// Weights so large that no cache holds them from one call to the next: calls walk through copies.
struct Copies {
  Buffer buffer;
  std::vector<Weight> weights;
  size_t next = 0;

  Copies(const std::vector<int64_t>& rows, int64_t k, size_t at_least) {
    int64_t n = 0;
    for (const int64_t r : rows) n += r;
    const auto bytes = static_cast<size_t>(n * k) * 2;
    const size_t copies = std::max<size_t>(1, at_least / bytes);
    buffer = Buffer(copies * bytes);
    fill(Tensor(buffer.data(), DType::kBF16, {n, k}), 1);
    for (size_t c = 0; c < copies; ++c) {
      if (c > 0) std::memcpy(buffer.data() + c * bytes, buffer.data(), bytes);
      Weight w;
      const std::byte* p = buffer.data() + c * bytes;
      for (const int64_t r : rows) {
        w.data[static_cast<size_t>(w.parts++)] = Tensor(p, DType::kBF16, {r, k});
        p += r * k * 2;
      }
      weights.push_back(w);
    }
  }
  const Weight& take() { return weights[next++ % weights.size()]; }
};

void linears(Bench& b, const std::vector<int64_t>& batches, size_t at_least) {
  struct Shape {
    const char* name;
    std::vector<int64_t> rows;
    int64_t k;
  };
  const std::vector<Shape> shapes = {{"qkv", {2048, 256, 256}, 2048},
                                     {"o", {2048}, 2048},
                                     {"gate|up silu", {11008, 11008}, 2048},
                                     {"down", {2048}, 11008},
                                     {"vision qkv", {3840}, 1280},
                                     {"vision gate|up silu", {3420, 3420}, 1280},
                                     {"vision down", {1280}, 3420},
                                     {"logits", {151936}, 2048}};
  for (const Shape& s : shapes) {
    const bool is_logits = s.rows[0] > 100000;
    Copies copies(s.rows, s.k, at_least);
    int64_t n = 0;
    for (const int64_t r : s.rows) n += r;
    for (const int64_t t : batches) {
      if (is_logits && t > 8) continue;
      Buffer x_buffer(static_cast<size_t>(t * s.k) * 2);
      const Tensor x(x_buffer.data(), DType::kBF16, {t, s.k});
      fill(x, 2);
      const double seconds = b.time([&](const Ctx& c) {
        if (is_logits) {
          ops::logits(c, x, copies.take());
        } else if (s.rows.size() == 2) {
          ops::gate_up_silu(c, x, copies.take());
        } else {
          ops::linear(c, x, copies.take());
        }
      });
      b.report(fmt::format("{} T={} N={} K={}", s.name, t, n, s.k), seconds, static_cast<double>(n * s.k * 2),
               2.0 * static_cast<double>(t * n * s.k));
    }
  }
}

int run(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const auto wants = [&](const char* section) {
    if (argc <= 2) return true;
    return std::any_of(argv + 2, argv + argc, [&](const char* arg) { return std::strcmp(arg, section) == 0; });
  };
  Bench b(threads);
  {
    Buffer buffer(size_t{512} << 20);
    std::memset(buffer.data(), 0, buffer.size());
    b.bandwidth = read_bandwidth(b.pool, buffer.data(), buffer.size());
  }
  b.peak = compute_peak(b.pool);
  fmt::print("{} threads, {}; read {:.1f} GB/s; {} peak {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s\n", b.pool.size(),
             cpu::kernels().name, b.bandwidth / 1e9, b.peak.instruction, b.peak.bf16_flops / 1e9,
             b.peak.f32_flops / 1e9);
  if (wants("decode")) linears(b, {1, 2, 4, 8}, size_t{160} << 20);
  if (wants("prefill")) linears(b, {128, 512}, size_t{64} << 20);
  return 0;
}

}  // namespace
}  // namespace saccade::bench

int main(int argc, char** argv) { return saccade::bench::run(argc, argv); }
