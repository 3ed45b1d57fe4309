// What op tests share: tensors that end at a page which must not be touched, seeded values, double copies for the
// oracle, and the instruction sets of this CPU.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "ops/ops.h"

namespace saccade {

namespace ref = cpu::reference;

inline constexpr double kEpsFloat = 0x1p-24;  // unit roundoff: half an ulp of 1
inline double eps_of(DType t) { return t == DType::kBF16 ? 0x1p-8 : kEpsFloat; }

// Owns tensors whose last byte is followed by an inaccessible page: a read or write past the end is a crash.
class Guarded {
 public:
  Guarded() = default;
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    for (const auto& [p, bytes] : mapped_) ::munmap(p, bytes);
  }

  // Every byte 0xff: NaN in all float types.
  Tensor poison(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, dtype, shape);
    constexpr size_t kPage = 4096;
    const size_t bytes = (t.bytes() + kPage - 1) / kPage * kPage;
    void* p = ::mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    ::mprotect(static_cast<std::byte*>(p) + bytes, kPage, PROT_NONE);
    mapped_.emplace_back(p, bytes + kPage);
    if (bytes > 0) std::memset(p, 0xff, bytes);
    t.data = static_cast<std::byte*>(p) + (bytes - t.bytes());
    return t;
  }
  // Normal(0, sigma).
  Tensor normal(DType dtype, std::initializer_list<int64_t> shape, float sigma = 1) {
    const Tensor t = poison(dtype, shape);
    std::normal_distribution<float> values(0, sigma);
    for (int64_t i = 0; i < t.numel(); ++i) set(t, i, values(rng_));
    return t;
  }
  template <class T = int32_t>
  Tensor ints(const std::vector<T>& values, std::initializer_list<int64_t> shape) {
    const Tensor t = poison(DType::kI32, shape);
    if (!values.empty()) std::memcpy(t.data, values.data(), t.bytes());
    return t;
  }
  static void set(const Tensor& t, int64_t i, float value) {
    if (t.dtype == DType::kBF16) {
      t.as<BFloat16>()[i] = BFloat16(value);
    } else {
      t.as<float>()[i] = value;
    }
  }
  std::mt19937& rng() { return rng_; }

 private:
  std::mt19937 rng_{20240607};  // the one seed of all op tests
  std::vector<std::pair<void*, size_t>> mapped_;
};

inline double at(const Tensor& t, int64_t i) {
  return t.dtype == DType::kBF16 ? static_cast<double>(float(t.as<BFloat16>()[i]))
                                 : static_cast<double>(t.as<float>()[i]);
}
inline std::vector<double> doubles(const Tensor& t) {
  std::vector<double> values(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = at(t, static_cast<int64_t>(i));
  return values;
}
inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

// The step whose rows are the rows[i] tokens of sequences[i] that end at ends[i]; pages[b] are those of sequence b.
inline PagedKv step_of(Guarded& memory, const std::vector<std::vector<int32_t>>& pages,
                       const std::vector<size_t>& sequences, const std::vector<int64_t>& rows,
                       const std::vector<int64_t>& ends) {
  std::vector<int32_t> offsets = {0}, kv_lens, table;
  size_t most = 0;
  for (const size_t b : sequences) most = std::max(most, pages[b].size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    offsets.push_back(offsets.back() + static_cast<int32_t>(rows[i]));
    kv_lens.push_back(static_cast<int32_t>(ends[i]));
    std::vector<int32_t> mine = pages[sequences[i]];
    mine.resize(most, 1 << 30);  // an index that nobody may use
    table.insert(table.end(), mine.begin(), mine.end());
  }
  const auto b = static_cast<int64_t>(sequences.size());
  PagedKv kv;
  kv.q_offsets = memory.ints(offsets, {b + 1});
  kv.kv_lens = memory.ints(kv_lens, {b});
  kv.page_table = memory.ints(table, {b, static_cast<int64_t>(most)});
  return kv;
}

// An arena whose memory is NaN, and pools of 1, 2 and 3 threads.
class OpTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  OpTest() {
    cpu::use_isa(GetParam());
    std::memset(arena.allocate(size_t{16} << 20), 0xff, size_t{16} << 20);
    arena.reset();
  }
  ~OpTest() override { cpu::use_isa(cpu::supported_isas().back()); }

  Ctx ctx(int threads) { return {pools_[threads - 1], arena}; }

  Arena arena{size_t{64} << 20};
  Guarded memory;

 private:
  static inline ThreadPool pools_[3] = {ThreadPool(1), ThreadPool(2), ThreadPool(3)};
};

#define INSTANTIATE_FOR_ISAS(Suite)                                                                    \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, ::testing::ValuesIn(cpu::supported_isas()), [](const auto& p) { \
    std::string name = cpu::isa_name(p.param);                                                         \
    std::erase(name, '-');                                                                             \
    return name;                                                                                       \
  })

}  // namespace saccade
