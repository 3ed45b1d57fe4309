// Choosing the next token from logits, on any thread and with the same arithmetic everywhere.
//
// The reference's order: repetition penalty, temperature, top-k, top-p, min-p. With x the penalised logits, T the
// temperature, w = exp((x - max x) / T), and tokens ranked by x descending, then by lower id:
//   top-k  keeps x >= the k-th largest x (everything tied with it too, as the reference does)
//   top-p  keeps a token if the tokens ranked before it have together less than top_p of the mass top-k left
//   min-p  keeps w >= min_p
// The most likely token is always kept. Temperature 0 takes it: argmax x, the lowest id of equals.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/model.h"
#include "saccade/request.h"

namespace saccade {

// SamplingParams with every field decided.
struct Sampling {
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  int top_k = 0;
  uint64_t seed = 0;
};

// Checks ranges (Error names the field) and fills unset fields from the checkpoint.
Sampling resolve_sampling(const SamplingParams& params, const GenerationDefaults& defaults);

// Distinct ids of a sequence, for the repetition penalty.
class TokenSet {
 public:
  explicit TokenSet(int64_t vocab) : words_((static_cast<size_t>(vocab) + 31) / 32) {}
  void add(int32_t id);
  std::span<const int32_t> ids() const { return ids_; }
  std::span<const uint32_t> words() const { return words_; }  // a bit for each id

 private:
  std::vector<uint32_t> words_;
  std::vector<int32_t> ids_;
};

// Uniform in [0, 1), a function of its arguments alone: Philox4x32-10 (Salmon et al., SC 2011) with the seed as key
// and the position as counter.
double uniform(uint64_t seed, uint64_t position);

inline constexpr const char* kBadLogits = "the model's logits are not finite";

class Sampler {
 public:
  struct Candidate {
    int32_t id;
    float x;   // penalised logit
    double w;  // not normalised
  };

  // logits [V]. `position` is the token's place in its sequence: the draw depends on it and the seed alone.
  // Throws Error when a logit is NaN or +infinity, or all are -infinity.
  int32_t sample(std::span<const float> logits, const Sampling& s, const TokenSet& seen, uint64_t position);

  // What a draw may yield, by ascending id; for temperature > 0. Throws likewise. Valid until the next call.
  std::span<const Candidate> candidates(std::span<const float> logits, const Sampling& s, const TokenSet& seen);

 private:
  std::span<const float> penalise(std::span<const float> logits, const Sampling& s, const TokenSet& seen);

  std::vector<float> penalised_, scratch_;
  std::vector<Candidate> candidates_, ranked_;
};

// log softmax of the logits as they come from the model (finite, as sample() checks), of `id` and of the `top` most
// likely tokens.
TokenLogprob token_logprob(std::span<const float> logits, int32_t id, int top);

}  // namespace saccade
