// Times the ops on the shapes of real models and prints each against the bound measured in the same run: memory
// bandwidth for few rows, multiply-add peak for many.
//   ops_bench [THREADS] [SECTION ...]   sections: decode prefill attention rows (all when none is named)
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
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

// Memory as a mapped checkpoint has it: small pages.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    ::madvise(p, bytes, MADV_NOHUGEPAGE);
    data_ = static_cast<std::byte*>(p);
    std::memset(data_, 0, bytes);
  }
  ~Pages() { ::munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  std::byte* data_;
  size_t bytes_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Bench {
  ThreadPool pool;
  Arena arena;
  Pages memory;  // for the bandwidth
  Peak peak{};

  explicit Bench(int threads) : pool(threads), memory(size_t{128} << 20), peak(compute_peak(pool)) {}

  double bandwidth() { return static_cast<double>(memory.size()) / read_seconds(pool, memory.data(), memory.size()); }

  // Times op, and the bandwidth and peak between its calls, since a shared machine drifts; medians of all.
  void run(const std::string& what, double bytes, double flops, const std::function<void(const Ctx&)>& op,
           int rounds = 9) {
    std::vector<double> times, bandwidths;
    for (int i = -1; i < rounds; ++i) {
      arena.reset();
      const double t = seconds([&] { op(Ctx{pool, arena}); });
      if (i < 0) continue;
      times.push_back(t);
      bandwidths.push_back(bandwidth());
    }
    const double t = median(times), b = median(bandwidths);
    fmt::print("{:<40} {:>9.3f} ms {:>7.1f} GB/s ({:>5.1f}% of {:>5.1f}) {:>8.1f} GFLOP/s ({:>5.1f}%)\n", what, t * 1e3,
               bytes / t / 1e9, bytes / t / b * 100, b / 1e9, flops / t / 1e9, flops / t / peak.bf16_flops * 100);
  }
};

// Weights so large that no cache holds them from one call to the next: calls walk through copies.
struct Copies {
  static int64_t total(const std::vector<int64_t>& rows) {
    return std::accumulate(rows.begin(), rows.end(), int64_t{0});
  }

  const size_t bytes, copies;
  Pages buffer;
  std::vector<Weight> weights;
  size_t next = 0;

  Copies(const std::vector<int64_t>& rows, int64_t k, size_t at_least)
      : bytes(static_cast<size_t>(total(rows) * k) * 2),
        copies(std::max<size_t>(1, at_least / bytes)),
        buffer(copies * bytes) {
    const int64_t n = total(rows);
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
  const std::vector<Shape> shapes = {
      {"qkv", {2048, 256, 256}, 2048}, {"o", {2048}, 2048},          {"gate|up silu", {11008, 11008}, 2048},
      {"down", {2048}, 11008},         {"vision qkv", {3840}, 1280}, {"vision gate|up silu", {3420, 3420}, 1280},
      {"vision down", {1280}, 3420},   {"logits", {151936}, 2048}};
  for (const Shape& s : shapes) {
    const bool is_logits = s.rows[0] > 100000;
    Copies copies(s.rows, s.k, at_least);
    const int64_t n = Copies::total(s.rows);
    for (const int64_t t : batches) {
      if (is_logits && t > 8) continue;
      Buffer x_buffer(static_cast<size_t>(t * s.k) * 2);
      const Tensor x(x_buffer.data(), DType::kBF16, {t, s.k});
      fill(x, 2);
      const auto op = [&](const Ctx& c) {
        if (is_logits) {
          ops::logits(c, x, copies.take());
        } else if (s.rows.size() == 2) {
          ops::gate_up_silu(c, x, copies.take());
        } else {
          ops::linear(c, x, copies.take());
        }
      };
      b.run(fmt::format("{} T={} N={} K={}", s.name, t, n, s.k), static_cast<double>(n * s.k * 2),
            2.0 * static_cast<double>(t * n * s.k), op);
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
  fmt::print("{} threads, {}; {} peak {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s\n", b.pool.size(), cpu::kernels().name,
             b.peak.instruction, b.peak.bf16_flops / 1e9, b.peak.f32_flops / 1e9);
  if (wants("decode")) linears(b, {1, 2, 4, 8}, size_t{160} << 20);
  if (wants("prefill")) linears(b, {128, 512}, size_t{64} << 20);
  return 0;
}

}  // namespace
}  // namespace saccade::bench

int main(int argc, char** argv) { return saccade::bench::run(argc, argv); }
