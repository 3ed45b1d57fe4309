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

  static bool begins_media(const Chunk& chunk);  // that has to be encoded
  // Runs the vision tower for media whose first token lies in the chunks; with `ahead`, for as many that follow in the
  // requests as make a batch. Waits for the device. Throws what the model throws; the sequences are then as they were.
  void encode_media(std::span<const Chunk> chunks, bool ahead);

  // All chunks through the model -> logits [R,V], a row for each chunk that reaches the end of its sequence, in their
  // order; valid until the next call. On a CUDA device the logits are there and may still be computed, the tokens that
  // the host has not read are those of `newest` [I32], and decodes and prompts go one after the other, each by its own
  // kernels. When it throws, the sequences are as they were.
  Tensor forward(std::span<const Chunk> chunks, const Tensor& newest);

  Ctx ctx() { return {pool_, arena_, on_tap_ ? &on_tap_ : nullptr, stream_, &kept_}; }

 private:
  Batch batch(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest);
  Tensor run(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest);
  Tensor forward_in_parts(std::span<const Chunk> chunks, const Tensor& newest);

  const Model& model_;
  KvCache& kv_;
  ThreadPool& pool_;
  Memory memory_;
  Stream stream_ = nullptr;
  Tap on_tap_;
  Arena arena_;
  Buffer kept_;
  StepInputs decode_inputs_, prompt_inputs_;
};

}  // namespace saccade
