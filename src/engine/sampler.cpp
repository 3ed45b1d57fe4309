#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace saccade {
namespace {

constexpr size_t kMaxStops = 16, kMaxStopBytes = 1024;
constexpr int kMaxLogprobs = 20;
constexpr float kMaxTemperature = 100;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool is_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto lead = static_cast<uint8_t>(s[i]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0 || i + length > s.size()) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t j = 1; j < length; ++j) {
      const auto next = static_cast<uint8_t>(s[i + j]);
      if ((next & 0xc0u) != 0x80u) return false;
      code = code << 6 | (next & 0x3fu);
    }
    if ((length == 3 && code < 0x800) || (length == 4 && (code < 0x10000 || code > 0x10ffff))) return false;
    if (code >= 0xd800 && code <= 0xdfff) return false;
    i += length;
  }
  return true;
}

// Largest value and its lowest index. Lanes let the compiler use vectors; NaN and +infinity throw, as does nothing but
// -infinity.
size_t argmax(std::span<const float> x) {
  constexpr size_t kLanes = 16;
  std::array<float, kLanes> most;
  std::array<uint32_t, kLanes> bad{};
  most.fill(-kInfinity);
  const auto take = [&](size_t lane, float v) {
    most[lane] = v > most[lane] ? v : most[lane];
    bad[lane] |= !(v < kInfinity);
  };
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) take(lane, x[i + lane]);
  for (; i < x.size(); ++i) take(0, x[i]);
  const float max = *std::max_element(most.begin(), most.end());
  if (max == -kInfinity || std::any_of(bad.begin(), bad.end(), [](uint32_t b) { return b != 0; })) fail(kBadLogits);
  return static_cast<size_t>(std::find(x.begin(), x.end(), max) - x.begin());
}

bool ranks_before(const Sampler::Candidate& a, const Sampler::Candidate& b) {
  return a.x > b.x || (a.x == b.x && a.id < b.id);
}

double mass_of(std::span<const Sampler::Candidate> c) {
  return std::accumulate(c.begin(), c.end(), 0.0, [](double sum, const auto& each) { return sum + each.w; });
}

// The k-th largest value, 1 <= k <= size. The k-th largest of the maxima of blocks bounds it from below, so one pass
// leaves few values to select from.
float kth_largest(std::span<const float> x, size_t k, std::vector<float>& scratch) {
  constexpr size_t kBlock = 32;
  float bound = -kInfinity;
  const auto select = [&] {
    std::nth_element(scratch.begin(), scratch.begin() + static_cast<std::ptrdiff_t>(k) - 1, scratch.end(),
                     std::greater<>());
    return scratch[k - 1];
  };
  scratch.clear();
  for (size_t i = 0; i < x.size(); i += kBlock) {
    float most = x[i];
    for (const float v : x.subspan(i, std::min(kBlock, x.size() - i))) most = v > most ? v : most;
    scratch.push_back(most);
  }
  if (k <= scratch.size()) bound = select();
  scratch.clear();
  for (const float v : x)
    if (v >= bound) scratch.push_back(v);
  return select();
}

// The last candidate, by rank, that has less than `limit` of mass before it: quickselect by mass, so that only the
// neighbourhood of the border is ever sorted. Shuffles `candidates`.
Sampler::Candidate nucleus_border(std::span<Sampler::Candidate> candidates, double limit) {
  auto low = candidates.begin(), high = candidates.end();  // the border lies in [low, high)
  double before = 0;                                       // mass of [begin, low)
  while (high - low > 32) {
    const Sampler::Candidate pivot = low[(high - low) / 2];
    auto middle = std::partition(low, high, [&](const auto& c) { return ranks_before(c, pivot); });
    if (middle == low) {  // the pivot leads
      std::iter_swap(low, std::find_if(low, high, [&](const auto& c) { return c.id == pivot.id; }));
      ++middle;
    }
    const double mass = mass_of({low, middle});
    if (before + mass < limit) {
      before += mass;
      low = middle;
    } else {
      high = middle;
    }
  }
  std::sort(low, high, ranks_before);
  auto border = low;
  for (before += low->w; border + 1 != high && before < limit; before += border->w) ++border;
  return *border;
}

}  // namespace

Sampling resolve_sampling(const SamplingParams& p, const GenerationDefaults& d) {
  Sampling s{.temperature = p.temperature.value_or(d.temperature),
             .top_p = p.top_p.value_or(d.top_p),
             .min_p = p.min_p.value_or(0),
             .repetition_penalty = p.repetition_penalty.value_or(d.repetition_penalty),
             .top_k = p.top_k.value_or(d.top_k),
             .seed = p.seed};
  // Written so that NaN fails.
  if (!(s.temperature >= 0 && s.temperature <= kMaxTemperature))
    fail("temperature: expected 0 to {}, found {}", kMaxTemperature, s.temperature);
  if (!(s.top_p > 0 && s.top_p <= 1)) fail("top_p: expected more than 0 and at most 1, found {}", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) fail("min_p: expected 0 to 1, found {}", s.min_p);
  if (!(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty)))
    fail("repetition_penalty: expected a finite number above 0, found {}", s.repetition_penalty);
  if (s.top_k < 0) fail("top_k: expected 0 or more, found {}", s.top_k);
  if (p.max_tokens < 1) fail("max_tokens: expected 1 or more, found {}", p.max_tokens);
  if (p.logprobs < -1 || p.logprobs > kMaxLogprobs)
    fail("logprobs: expected -1 (off) to {}, found {}", kMaxLogprobs, p.logprobs);
  if (p.stop.size() > kMaxStops) fail("stop: at most {} strings, found {}", kMaxStops, p.stop.size());
  for (const auto& stop : p.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes)
      fail("stop: expected strings of 1 to {} bytes, found one of {}", kMaxStopBytes, stop.size());
    if (!is_utf8(stop)) fail("stop: a string is not valid UTF-8");
  }
  return s;
}

void TokenSet::add(int32_t id) {
  const auto i = static_cast<size_t>(id);
  if (i / 32 >= words_.size()) return;
  uint32_t& word = words_[i / 32];
  const uint32_t bit = uint32_t{1} << (i % 32);
  if (word & bit) return;
  word |= bit;
  ids_.push_back(id);
}

double uniform(uint64_t seed, uint64_t position) {
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x[0], p1 = uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{x[0]} << 32 | x[1]) >> 11) * 0x1p-53;
}

std::span<const float> Sampler::penalise(std::span<const float> logits, const Sampling& s, const TokenSet& seen) {
  if (s.repetition_penalty == 1) return logits;
  penalised_.assign(logits.begin(), logits.end());
  for (const int32_t id : seen.ids()) {
    float& x = penalised_[static_cast<size_t>(id)];
    x = x < 0 ? x * s.repetition_penalty : x / s.repetition_penalty;
  }
  return penalised_;
}

std::span<const Sampler::Candidate> Sampler::candidates(std::span<const float> logits, const Sampling& s,
                                                        const TokenSet& seen) {
  const std::span<const float> x = penalise(logits, s, seen);
  const float max = x[argmax(x)];
  float threshold = -kInfinity;
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < x.size())
    threshold = kth_largest(x, static_cast<size_t>(s.top_k), scratch_);
  candidates_.clear();
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] < threshold) continue;
    // In double and after the difference, so that the smallest temperature cannot overflow.
    const double w = std::exp((static_cast<double>(x[i]) - max) / s.temperature);
    candidates_.push_back({static_cast<int32_t>(i), x[i], w});
  }
  if (s.top_p < 1) {
    // All that are lighter than this weigh together less than 1 - top_p, so none of them is reached.
    const double mass = mass_of(candidates_), top_p = s.top_p;
    const double negligible = (1 - top_p) * mass / (2 * static_cast<double>(candidates_.size()));
    std::erase_if(candidates_, [&](const Candidate& c) { return c.w < negligible; });
    ranked_ = candidates_;
    const Candidate border = nucleus_border(ranked_, top_p * mass);
    std::erase_if(candidates_, [&](const Candidate& c) { return ranks_before(border, c); });
  }
  if (s.min_p > 0) std::erase_if(candidates_, [&](const Candidate& c) { return c.w < static_cast<double>(s.min_p); });
  return candidates_;
}

int32_t Sampler::sample(std::span<const float> logits, const Sampling& s, const TokenSet& seen, uint64_t position) {
  if (s.temperature == 0) return static_cast<int32_t>(argmax(penalise(logits, s, seen)));
  const std::span<const Candidate> kept = candidates(logits, s, seen);
  const double target = uniform(s.seed, position) * mass_of(kept);
  double sum = 0;
  for (const Candidate& c : kept) {
    sum += c.w;
    if (sum > target) return c.id;
  }
  return kept.back().id;
}

TokenLogprob token_logprob(std::span<const float> logits, int32_t id, int top) {
  const double max = logits[argmax(logits)];
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
  const double log_sum = max + std::log(sum);
  const auto logprob = [&](int32_t i) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(i)]) - log_sum);
  };

  TokenLogprob out{.id = id, .logprob = logprob(id), .top = {}};
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto n = std::min<std::ptrdiff_t>(top, static_cast<std::ptrdiff_t>(order.size()));
  std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const int32_t token = order[static_cast<size_t>(i)];
    out.top.emplace_back(token, logprob(token));
  }
  return out;
}

}  // namespace saccade
