// Runner: chunks of sequences to one Batch, through the model, to logits. Owns the memory of a step.
#pragma once

#include <span>

#include "engine/scheduler.h"

namespace saccade {

class Runner {
 public:
  // `on_tap` may be empty.
  Runner(const Model& model, KvCache& kv, ThreadPool& pool, Tap on_tap)
      : model_(model), kv_(kv), pool_(pool), on_tap_(std::move(on_tap)) {}

  // Runs the vision tower for media whose first token lies in the chunk; with `ahead`, for as many that follow in the
  // request as make a batch. Throws what the model throws.
  void encode_media(const Chunk& chunk, bool ahead);

  // One forward of all chunks -> logits [R,V], a row for each chunk that reaches the end of its sequence, in their
  // order; valid until the next call. When it throws, the sequences are as they were.
  Tensor forward(std::span<const Chunk> chunks);

 private:
  Ctx ctx() { return {pool_, arena_, on_tap_ ? &on_tap_ : nullptr}; }
  Batch batch(std::span<const Chunk> chunks);

  const Model& model_;
  KvCache& kv_;
  ThreadPool& pool_;
  Tap on_tap_;
  Arena arena_;
};

// A tap for EngineOptions::on_tap: values as contiguous float32.
Tap float_tap(std::function<void(std::string_view, const float*, const int64_t*, int)> user);

}  // namespace saccade
