// Seeded random weights. One block of kBlock normals is made from the seed by counter, so that nothing depends on
// order; each tensor reads the block as a ring from a place that a hash of its name chooses. kBlock is prime and
// larger than any row count, so rows of a matrix, which start at multiples of its width, never coincide. Values of
// different tensors repeat each other: fine for speed and for parity of two paths, useless for statistics.
#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "base/error.h"
#include "weights/weights.h"

namespace saccade {
namespace {

constexpr size_t kBlock = 16777213;  // values; 32 MB of BF16
constexpr float kSigma = 0.02f;

// splitmix64 (Steele, Lea, Flood 2014)
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash(std::string_view text, uint64_t seed) {
  for (const char c : text) seed = mix(seed ^ static_cast<unsigned char>(c));
  return mix(seed);
}

// Binomial(64, 1/2) blurred by the sum of two uniforms: normal to the eye and to three moments, made of integers, so
// the same on every machine. Variance 16 + 1/6.
BFloat16 normal(uint64_t counter, uint64_t seed) {
  const uint64_t bits = mix(seed + 2 * counter), blur = mix(seed + 2 * counter + 1);
  const int64_t fraction = static_cast<int64_t>((blur >> 32) + (blur & 0xffffffffu)) - 0xffffffff;
  const int64_t fixed = (static_cast<int64_t>(std::popcount(bits)) - 32) * (int64_t{1} << 32) + fraction;
  constexpr float kScale = kSigma / 4.020779361f * 0x1p-32f;  // sqrt(16 + 1/6)
  return BFloat16(static_cast<float>(fixed) * kScale);
}

class Synthetic : public WeightSource {
 public:
  Synthetic(std::string name, uint64_t seed) : name_(std::move(name)), seed_(mix(seed)), block_(2 * kBlock) {
    auto* values = reinterpret_cast<BFloat16*>(block_.data());
    for (size_t i = 0; i < kBlock; ++i) values[i] = normal(i, seed_);
  }

  bool contains(std::string_view) const override { return true; }

  StoredTensor find(std::string_view name, std::span<const int64_t> shape) override {
    const auto it = made_.find(std::string(name));
    if (it != made_.end()) return it->second;
    StoredTensor stored{std::string(name), "BF16", {shape.begin(), shape.end()}, nullptr, 0, name_};
    const Tensor tensor = arena_.tensor(DType::kBF16, shape);
    stored.data = static_cast<const std::byte*>(tensor.data);
    stored.bytes = tensor.bytes();
    bytes_ += stored.bytes;
    fill(tensor, name);
    return made_.emplace(stored.name, stored).first->second;
  }

  std::vector<StoredTensor> list() const override { return {}; }
  std::string describe() const override { return name_; }
  size_t owned_bytes() const override { return bytes_; }
  void forget() override {
    made_.clear();
    arena_.reset();
    bytes_ = 0;
  }

 private:
  void fill(const Tensor& tensor, std::string_view name) const {
    auto* to = tensor.as<BFloat16>();
    const auto count = static_cast<size_t>(tensor.numel());
    if (name.find("norm") != name.npos || name.find("ln_q") != name.npos) {
      std::fill_n(to, count, BFloat16(1.0f));
      return;
    }
    const auto* ring = reinterpret_cast<const BFloat16*>(block_.data());
    size_t at = hash(name, seed_) % kBlock;
    for (size_t done = 0; done < count;) {
      const size_t n = std::min(count - done, kBlock - at);
      std::memcpy(to + done, ring + at, n * sizeof(BFloat16));
      done += n;
      at = 0;
    }
  }

  std::string name_;
  uint64_t seed_;
  Buffer block_;
  Arena arena_{size_t{64} << 20};
  std::unordered_map<std::string, StoredTensor> made_;
  size_t bytes_ = 0;
};

}  // namespace

std::unique_ptr<WeightSource> synthetic_weights(std::string name, uint64_t seed) {
  return std::make_unique<Synthetic>(std::move(name), seed);
}

}  // namespace saccade
