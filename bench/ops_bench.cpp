// Times the ops on the shapes of real models and prints each against the bound measured in the same run: memory
// bandwidth for few rows, multiply-add peak for many.
//   ops_bench [THREADS] [SECTION ...]   sections: decode prefill moe attention mla rows (all when none is named)
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "machine_probe.h"
#include "ops/ops.h"

namespace saccade::bench {
namespace {

template <class Fn>
double seconds(Fn fn) {
  const auto begin = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

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

// Bytes that no cache holds a useful part of.
size_t beyond_caches() {
  const int64_t l3 = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::max(size_t{160} << 20, 4 * static_cast<size_t>(std::max<int64_t>(0, l3)));
}

struct Bench {
  ThreadPool pool;
  Arena arena;
  Pages memory;  // for the bandwidth
  apps::Peak bf16_peak, f32_peak;

  explicit Bench(int threads)
      : pool(threads),
        memory(beyond_caches()),
        bf16_peak(apps::measure_bf16_peak(pool, 0.3)),
        f32_peak(apps::measure_f32_peak(pool, 0.3)) {}

  double bandwidth() {
    const double t = seconds([&] { apps::read_memory(pool, memory.data(), memory.size()); });
    return static_cast<double>(memory.size()) / t;
  }

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
               bytes / t / 1e9, bytes / t / b * 100, b / 1e9, flops / t / 1e9, flops / t / bf16_peak.flops * 100);
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

// The routed experts of DeepSeek-VL2: every token goes to 6 of 64, drawn at random as its scores are. Bytes are those
// of the experts that have rows.
void experts(Bench& b) {
  struct Shape {
    const char* name;
    int64_t d, f;
  };
  const int64_t e = 64, top_k = 6;
  for (const Shape& s : {Shape{"small", 2048, 1408}, Shape{"tiny", 1280, 896}}) {
    const size_t layer = static_cast<size_t>(e * s.f * s.d) * 2 * 3;
    const size_t layers = std::max<size_t>(2, beyond_caches() / layer);
    Copies gate_up({s.f, s.f}, s.d, layers * layer / 3 * 2), down({s.d}, s.f, layers * layer / 3);
    Arena kept;
    const Tensor gate = kept.tensor(DType::kF32, {e, s.d});
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < gate.numel(); ++i) gate.as<float>()[i] = normal(rng);
    for (const int64_t t : {1, 4, 32, 512}) {
      const Tensor x = kept.tensor(DType::kBF16, {t, s.d}), h = kept.tensor(DType::kBF16, {t * top_k, s.f}),
                   y = kept.tensor(DType::kBF16, {t * top_k, s.d});
      fill(h, 9);
      fill(y, 10);
      // Each call sees other tokens and the next layer.
      struct Call {
        ops::Routes routes;
        int64_t chosen;
      };
      std::vector<Call> calls;
      for (int i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < x.numel(); ++j) x.as<BFloat16>()[j] = BFloat16(normal(rng));
        Call call{ops::moe_route(Ctx{b.pool, kept}, x, gate, {}, {.top_k = top_k}), 0};
        const auto* ends = call.routes.offsets.as<int32_t>();
        for (int64_t j = 0; j < e; ++j) call.chosen += ends[j] < ends[j + 1];
        calls.push_back(call);
      }
      double chosen = 0;
      for (const Call& call : calls) chosen += static_cast<double>(call.chosen) / static_cast<double>(calls.size());
      size_t next = 0;
      const auto layer_of = [&](const Copies& c) {
        return std::span(c.weights).subspan(next % (c.weights.size() / e) * e, static_cast<size_t>(e));
      };
      const double bytes = chosen * static_cast<double>(s.d * s.f * 2);
      const double flops = 2.0 * static_cast<double>(t * top_k * s.d * s.f);
      const auto name = [&](const char* op) {
        return fmt::format("{} {} T={} ({:.0f} experts)", s.name, op, t, chosen);
      };
      const int rounds = t == 512 ? 5 : 13;
      b.run(
          name("gate|up"), 2 * bytes, 2 * flops,
          [&](const Ctx& c) {
            ops::grouped_gate_up_silu(c, x, calls[next % calls.size()].routes, layer_of(gate_up));
            ++next;
          },
          rounds);
      b.run(
          name("down"), bytes, flops,
          [&](const Ctx& c) {
            ops::grouped_linear(c, h, calls[next % calls.size()].routes, layer_of(down));
            ++next;
          },
          rounds);
      b.run(
          name("route"), static_cast<double>(gate.bytes()), 2.0 * static_cast<double>(t * e * s.d),
          [&](const Ctx& c) { ops::moe_route(c, x, gate, {}, {.top_k = top_k}); }, rounds);
      b.run(
          name("combine"), static_cast<double>(y.bytes()), 0,
          [&](const Ctx& c) { ops::moe_combine(c, y, calls[0].routes); }, rounds);
    }
  }
}

// Attention of a vision tower over p rows in segments.
void segments(Bench& b, int64_t p, const std::vector<int64_t>& sizes, int64_t dim) {
  const int64_t heads = 16;
  Buffer buffer(static_cast<size_t>(p * 3 * heads * dim) * 2);
  const Tensor qkv(buffer.data(), DType::kBF16, {p, 3, heads, dim});
  fill(qkv, 3);
  for (const int64_t size : sizes) {
    std::vector<int32_t> ends;
    for (int64_t end = 0; end <= p; end += size) ends.push_back(static_cast<int32_t>(end));
    const Tensor cu_seqlens(ends.data(), DType::kI32, {static_cast<int64_t>(ends.size())});
    b.run(
        fmt::format("segments of {} P={} H={} Dh={}", size, p, heads, dim), static_cast<double>(qkv.bytes()),
        4.0 * static_cast<double>(p * size * heads * dim),
        [&](const Ctx& c) { ops::segment_attention(c, qkv, cu_seqlens, 0.11F); }, 5);
  }
}

// Attention over the cache of Qwen2.5-VL-3B: one row or a chunk of each sequence.
void paged(Bench& b) {
  const int64_t heads = 16, kv_heads = 2, dim = 128;
  for (const auto& [sequences, length, rows] :
       std::vector<std::array<int64_t, 3>>{{1, 512, 1}, {1, 8192, 1}, {8, 2048, 1}, {1, 512, 512}, {1, 2048, 512}}) {
    const int64_t pages = sequences * length / kPageTokens;
    // Layers enough that none stays in cache from one call to the next.
    const int64_t layers =
        std::max<int64_t>(1, static_cast<int64_t>(beyond_caches()) / (pages * 2 * kv_heads * kPageTokens * dim * 2));
    Buffer cache(static_cast<size_t>(layers * pages * 2 * kv_heads * kPageTokens * dim) * 2);
    const Tensor kv_layers(cache.data(), DType::kBF16, {layers, pages * 2 * kv_heads * kPageTokens * dim});
    fill(kv_layers.slice(0, 1), 4);
    for (int64_t l = 1; l < layers; ++l) std::memcpy(kv_layers[l].data, kv_layers.data, kv_layers[l].bytes());
    Buffer q_buffer(static_cast<size_t>(sequences * rows * heads * dim) * 2);
    const Tensor q(q_buffer.data(), DType::kBF16, {sequences * rows, heads, dim});
    fill(q, 5);
    std::vector<int32_t> offsets, lens, table;
    for (int64_t s = 0; s <= sequences; ++s) offsets.push_back(static_cast<int32_t>(s * rows));
    for (int64_t s = 0; s < sequences; ++s) lens.push_back(static_cast<int32_t>(length));
    for (int64_t i = 0; i < pages; ++i) table.push_back(static_cast<int32_t>(i));
    PagedKv kv;
    kv.q_offsets = Tensor(offsets.data(), DType::kI32, {sequences + 1});
    kv.kv_lens = Tensor(lens.data(), DType::kI32, {sequences});
    kv.page_table = Tensor(table.data(), DType::kI32, {sequences, pages / sequences});
    int64_t layer = 0;
    const double pairs = static_cast<double>(sequences) *
                         (static_cast<double>(rows * (length - rows)) + 0.5 * static_cast<double>(rows * (rows + 1)));
    b.run(fmt::format("paged B={} S={} rows={}", sequences, length, rows), static_cast<double>(kv_layers[0].bytes()),
          4.0 * pairs * static_cast<double>(heads * dim), [&](const Ctx& c) {
            const Tensor one = kv_layers[layer++ % layers].reshaped({pages, 2, kv_heads, kPageTokens, dim});
            ops::paged_attention(c, q, one, kv, 0.09F);
          });
  }
}

// Attention of DeepSeek-VL2-small over its latents, and of its vision tower (seven tiles of 729 patches).
void latents(Bench& b) {
  const int64_t heads = 16, plain = 128, turned = 64, latent = 512, value = 128, row = latent + turned;
  Copies kv_b({heads * (plain + value)}, latent, beyond_caches());
  for (const auto& [length, rows] :
       std::vector<std::array<int64_t, 2>>{{1024, 1}, {4096, 1}, {512, 512}, {2048, 512}}) {
    const int64_t pages = length / kPageTokens;
    // Layers enough that none stays in cache from one call to the next.
    const int64_t layers = std::max<int64_t>(1, static_cast<int64_t>(beyond_caches()) / (length * row * 2));
    Buffer cache(static_cast<size_t>(layers * length * row) * 2);
    const Tensor kv_layers(cache.data(), DType::kBF16, {layers, length * row});
    fill(kv_layers.slice(0, 1), 4);
    for (int64_t l = 1; l < layers; ++l) std::memcpy(kv_layers[l].data, kv_layers.data, kv_layers[l].bytes());
    Buffer q_buffer(static_cast<size_t>(rows * heads * (plain + turned)) * 2);
    const Tensor q(q_buffer.data(), DType::kBF16, {rows, heads, plain + turned});
    fill(q, 5);
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows)}, lens = {static_cast<int32_t>(length)};
    std::vector<int32_t> table(static_cast<size_t>(pages));
    std::iota(table.begin(), table.end(), 0);
    PagedKv kv;
    kv.q_offsets = Tensor(offsets.data(), DType::kI32, {2});
    kv.kv_lens = Tensor(lens.data(), DType::kI32, {1});
    kv.page_table = Tensor(table.data(), DType::kI32, {1, pages});
    int64_t layer = 0;
    const double pairs = static_cast<double>(rows * (length - rows)) + 0.5 * static_cast<double>(rows * (rows + 1));
    const double bytes = static_cast<double>(kv_layers[0].bytes() + kv_b.bytes);
    const auto next = [&] { return kv_layers[layer++ % layers].reshaped({pages, kPageTokens, row}); };
    const auto weights = static_cast<double>(heads * (plain + value) * latent);
    b.run(fmt::format("absorbed S={} rows={}", length, rows), bytes,
          2 * (pairs * static_cast<double>(heads * (row + latent)) + static_cast<double>(rows) * weights),
          [&](const Ctx& c) { ops::mla_absorbed_attention(c, q, kv_b.take(), next(), kv, value, 0.07F); });
    if (rows == 1) continue;
    b.run(fmt::format("expanded S={} rows={}", length, rows), bytes,
          2 * (pairs * static_cast<double>(heads * (plain + turned + value)) + static_cast<double>(length) * weights),
          [&](const Ctx& c) { ops::mla_expanded_attention(c, q, kv_b.take(), next(), kv, value, 0.07F); });
  }
  segments(b, 7 * 729, {729}, 72);
}

// What surrounds the products, for one row and for many.
void rows(Bench& b) {
  const int64_t d = 2048, heads = 16, kv_heads = 2, dim = 128;
  for (const int64_t t : {1, 128}) {
    Buffer memory(static_cast<size_t>(t * 16 * d) * 2 + static_cast<size_t>(d) * 2);
    const Tensor x(memory.data(), DType::kBF16, {t, d});
    const Tensor w(memory.data() + x.bytes(), DType::kBF16, {d});
    fill(x, 6);
    fill(w, 7);
    const auto bytes = static_cast<double>(2 * x.bytes());
    b.run(fmt::format("rms_norm T={} D={}", t, d), bytes, 0, [&](const Ctx& c) { ops::rms_norm(c, x, w, 1e-6F); });
    b.run(fmt::format("gelu T={} D={}", t, d), bytes, 0, [&](const Ctx& c) { ops::gelu(c, x); });
    const std::vector<int32_t> numbers(static_cast<size_t>(3 * t), 77);
    const Tensor positions(numbers.data(), DType::kI32, {3, t}), slots(numbers.data(), DType::kI32, {t});
    const std::array<int64_t, 3> sections = {16, 24, 24};
    Arena kept;
    const Tensor table = ops::rope_table(Ctx{b.pool, kept}, positions, sections, 1e6, dim, DType::kBF16);
    b.run(fmt::format("rope_table T={}", t), static_cast<double>(table.bytes()), 0,
          [&](const Ctx& c) { ops::rope_table(c, positions, sections, 1e6, dim, DType::kBF16); });
    const Tensor qkv = kept.tensor(DType::kBF16, {t, (heads + 2 * kv_heads) * dim});
    fill(qkv, 8);
    const Tensor layer = kept.tensor(DType::kBF16, {2, 2, kv_heads, kPageTokens, dim});
    PagedKv kv;
    kv.slots = slots;
    b.run(fmt::format("qkv_rope_append T={}", t), static_cast<double>(2 * qkv.bytes()), 0,
          [&](const Ctx& c) { ops::qkv_rope_append(c, qkv, table, layer, kv, heads, kv_heads); });
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
             b.bf16_peak.instruction, b.bf16_peak.flops / 1e9, b.f32_peak.flops / 1e9);
  if (wants("decode")) linears(b, {1, 2, 4, 8}, beyond_caches());
  if (wants("prefill")) linears(b, {128, 512}, size_t{64} << 20);
  if (wants("moe")) experts(b);
  if (wants("attention")) {
    segments(b, 3904, {64, 3904}, 80);  // Qwen2.5-VL: windows, and all rows of a picture
    paged(b);
  }
  if (wants("mla")) latents(b);
  if (wants("rows")) rows(b);
  return 0;
}

}  // namespace
}  // namespace saccade::bench

int main(int argc, char** argv) { return saccade::bench::run(argc, argv); }
