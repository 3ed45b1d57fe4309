// Runner: chunks of sequences to one Batch, through the model, to logits. Owns the memory of a step.
#pragma once

#include <span>

#include "engine/scheduler.h"
#include "engine/step_inputs.h"

namespace saccade {

using UserTap = std::function<void(std::string_view, const float*, const int64_t*, int)>;  // EngineOptions::on_tap

// Gives the user values as contiguous float32, from the device's memory where there is a stream. Empty for no user.
Tap float_tap(const UserTap& user, Stream stream = nullptr);

class Runner {
 public:
  // `tap` may be empty.
  Runner(const Model& model, KvCache& kv, ThreadPool& pool, Memory memory, const UserTap& tap);
  ~Runner();

  // Runs the vision tower for media whose first token lies in the chunks; with `ahead`, for as many that follow in the
  // requests as make a batch. Throws what the model throws; the sequences are then as they were.
  void encode_media(std::span<const Chunk> chunks, bool ahead);
  // Waits until a CUDA device has done so, since `begun`.
  void wait_for_media(Clock::time_point begun);

  // All chunks through the model -> logits [R,V], a row for each chunk that reaches the end of its sequence, in their
  // order; valid until the next call. On a CUDA device the logits are there and may still be computed, the tokens that
  // the host has not read are those of `newest` [I32], and decodes and prompts go one after the other, each by its own
  // kernels. When it throws, the sequences are as they were.
  Tensor forward(std::span<const Chunk> chunks, const Tensor& newest);

  Ctx ctx() { return {pool_, arena_, on_tap_ ? &on_tap_ : nullptr, stream_, &kept_, stream_ ? &staging_ : nullptr}; }

 private:
  Batch batch(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest);
  Tensor run(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest);
  Tensor forward_in_parts(std::span<const Chunk> chunks, const Tensor& newest);
  void count_encoding(Clock::time_point begun);

  const Model& model_;
  KvCache& kv_;
  ThreadPool& pool_;
  Memory memory_;
  Stream stream_ = nullptr;
  Tap on_tap_;
  Arena arena_;
  Buffer kept_;
  Staging staging_;
  std::vector<SequencePtr> encoding_;  // whose media a device has not been waited for
  Event encoded_ = nullptr;
  StepInputs decode_inputs_, prompt_inputs_;
};

}  // namespace saccade
