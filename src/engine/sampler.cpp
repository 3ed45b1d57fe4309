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

// Index of the largest value, the lowest of equals.
size_t argmax(std::span<const float> x) {
  size_t best = 0;
  for (size_t i = 1; i < x.size(); ++i) best = x[i] > x[best] ? i : best;
  return best;
}

void check_finite(std::span<const float> x) {
  bool any = false, bad = false;
  for (const float v : x) {
    bad |= !(v < std::numeric_limits<float>::infinity());  // NaN or +inf
    any |= v > -std::numeric_limits<float>::infinity();
  }
  if (bad || !any) fail("the model's logits are not finite");
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
  if (i >= present_.size() || present_[i]) return;
  present_[i] = true;
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

  float threshold = -std::numeric_limits<float>::infinity();
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < x.size()) {
    scratch_.assign(x.begin(), x.end());
    const auto kth = scratch_.begin() + s.top_k - 1;
    std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
    threshold = *kth;
  }
  candidates_.clear();
  double mass = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] < threshold) continue;
    // In double and after the difference, so that the smallest temperature cannot overflow.
    const double w = std::exp((static_cast<double>(x[i]) - max) / s.temperature);
    candidates_.push_back({static_cast<int32_t>(i), x[i], w});
    mass += w;
  }

  if (s.top_p < 1) {
    // Ranks only as far as the nucleus reaches: selects and sorts the next few until the mass is there.
    const auto before = [](const Candidate& a, const Candidate& b) { return a.x > b.x || (a.x == b.x && a.id < b.id); };
    const double limit = static_cast<double>(s.top_p) * mass;
    const auto begin = candidates_.begin();
    double ranked_mass = 0;
    std::ptrdiff_t ranked = 0, kept = 0, step = 64;
    const auto count = static_cast<std::ptrdiff_t>(candidates_.size());
    while (kept == ranked && ranked < count) {
      const std::ptrdiff_t end = std::min(ranked + step, count);
      if (end < count) std::nth_element(begin + ranked, begin + end, candidates_.end(), before);
      std::sort(begin + ranked, begin + end, before);
      for (ranked = end; kept < end && ranked_mass < limit; ++kept)
        ranked_mass += candidates_[static_cast<size_t>(kept)].w;
      step *= 4;
    }
    candidates_.resize(static_cast<size_t>(kept));
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  if (s.min_p > 0) std::erase_if(candidates_, [&](const Candidate& c) { return c.w < static_cast<double>(s.min_p); });
  return candidates_;
}

int32_t Sampler::sample(std::span<const float> logits, const Sampling& s, const TokenSet& seen, uint64_t position) {
  check_finite(logits);
  if (s.temperature == 0) return static_cast<int32_t>(argmax(penalise(logits, s, seen)));

  const std::span<const Candidate> kept = candidates(logits, s, seen);
  const double mass =
      std::accumulate(kept.begin(), kept.end(), 0.0, [](double sum, const Candidate& c) { return sum + c.w; });
  const double target = uniform(s.seed, position) * mass;
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
