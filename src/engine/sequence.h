// Sequence: a request on its way through the engine.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>

#include "engine/kv_cache.h"
#include "engine/sampler.h"
#include "engine/stop.h"
#include "saccade/engine.h"
#include "text/tokenizer.h"

namespace saccade {

using Clock = std::chrono::steady_clock;

inline double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Owned by one thread at a time: the one that submits, then a preparing one, then the engine's. Only `cancelled` is
// touched from elsewhere.
struct Sequence {
  enum class Stage : uint8_t { kQueued, kPreparing, kRunning, kEnded };  // kPreparing lasts until admission

  Sequence(Request r, const Sampling& s, const Tokenizer& tokenizer, int64_t vocab)
      : request(std::move(r)), sampling(s), detokenizer(tokenizer), stop(request.sampling.stop), seen(vocab) {}

  uint64_t id = 0;
  Request request;
  Sampling sampling;
  Engine::OnToken on_token;
  Engine::OnDone on_done;
  std::atomic<bool> cancelled{false};
  Stage stage = Stage::kQueued;

  // Set while preparing. prompt.media[i] is dropped once encoded.
  Prompt prompt;
  int64_t max_new_tokens = 0;  // max_tokens, or as many as the context leaves

  KvCache::Lease pages;
  int64_t cached = 0;                 // tokens whose keys and values are in the cache
  std::vector<int64_t> media_tokens;  // of media[i]
  std::vector<Buffer> embeddings;     // of media[i], from its encoding until its last token is prefilled
  int64_t embedding_width = 0;
  DType embedding_dtype = DType::kF32;

  Detokenizer detokenizer;
  StopMatcher stop;
  TokenSet seen;
  Result result;
  int64_t unread = 0;      // tokens after those of the result, chosen on a CUDA device: the host has not read them
  int32_t newest_row = 0;  // where the last of them stands among the tokens of its step

  Clock::time_point submitted, admitted, first_token, last_token;
  double prepare_seconds = 0;

  int64_t prompt_length() const { return static_cast<int64_t>(prompt.ids.size()); }
  int64_t generated() const { return static_cast<int64_t>(result.token_ids.size()) + unread; }
  int64_t length() const { return prompt_length() + generated(); }
  bool prefilling() const { return generated() == 0; }
  // -1 - newest_row for the last one, while it is unread.
  int32_t token(int64_t t) const {
    if (t < prompt_length()) return prompt.ids[static_cast<size_t>(t)];
    const auto i = static_cast<size_t>(t - prompt_length());
    return i < result.token_ids.size() ? result.token_ids[i] : -1 - newest_row;
  }
  int32_t position(int axis, int64_t t) const {
    return t < prompt_length() ? prompt.positions[static_cast<size_t>(axis * prompt_length() + t)]
                               : prompt.next_position + static_cast<int32_t>(t - prompt_length());
  }
};

using SequencePtr = std::shared_ptr<Sequence>;

}  // namespace saccade
