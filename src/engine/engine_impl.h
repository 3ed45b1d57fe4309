// The engine behind saccade::Engine.
//
// Threads: callers submit; two preparing threads decode media and tokenise; one engine thread owns the model, the KV
// cache and all running sequences, calls step() and every callback. A sequence belongs to one thread at a time and is
// handed over under `mutex_`. No lock is held while the model or a callback runs.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "engine/device_sampler.h"
#include "engine/placement.h"
#include "engine/runner.h"

namespace saccade {

// For tests and for programs that bring their own Model. `plan` comes from plan_memory().
std::unique_ptr<Engine> make_engine(std::unique_ptr<Model> model, const EngineOptions& options, const MemoryPlan& plan);
// Plans from what the loaded model says of itself.
std::unique_ptr<Engine> make_engine(std::unique_ptr<Model> model, const EngineOptions& options);

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<Model> model, const EngineOptions& options, const MemoryPlan& plan,
             const Placement& placement);
  ~EngineImpl() override;  // cancels everything; every on_done has been called when it returns. Not from a callback.

  uint64_t submit(Request request, OnToken on_token, OnDone on_done) override;
  void cancel(uint64_t id) override;
  Result generate(Request request, OnToken on_token) override;
  const ModelInfo& info() const override { return info_; }
  const MemoryPlan& memory() const override { return plan_; }
  void set_load_seconds(double seconds) { info_.load_seconds = seconds; }

  struct Stats {
    int waiting = 0, running = 0;
    int64_t free_pages = 0, total_pages = 0;
  };
  Stats stats() const;  // thread-safe

 private:
  // The token after a sequence's last.
  struct Choice {
    SequencePtr sequence;
    int32_t id = 0;
    std::optional<TokenLogprob> logprob;
    std::string error;  // not empty when no token could be chosen
  };
  using Choices = std::vector<Choice>;

  void prepare_loop();
  void prepare(Sequence& s) const;

  void engine_loop();
  void step();
  void take_prepared();
  void encode(std::vector<Chunk>& chunks);  // drops those whose media fail
  void run(std::span<const Chunk> chunks);
  Choices start_choosing(std::span<const Chunk> chunks, const Tensor& logits);
  void choose(Choices& choices, const Tensor& logits);
  void read_device(Choices& choices);
  void settle();
  void deliver(Sequence& s, Choice choice);
  void end_running(Sequence& s, FinishReason reason, std::string error = {});
  void end(SequencePtr s, FinishReason reason, std::string error = {});
  void leave_queue(Sequence& s);  // mutex_ held

  const EngineOptions options_;
  const MemoryPlan plan_;
  const Placement placement_;
  const std::unique_ptr<Model> model_;
  ModelInfo info_;  // the model's, with the engine's context limit

  ThreadPool pool_;
  KvCache kv_;
  Scheduler scheduler_;
  Runner runner_;
  std::vector<Sampler> samplers_;  // one for each thread of the pool
  DeviceSampler device_sampler_;
  std::optional<Choices> in_flight_;  // of a step on a CUDA device whose tokens have not been read

  mutable std::mutex mutex_;
  std::condition_variable engine_wake_, prepare_wake_;
  std::unordered_map<uint64_t, SequencePtr> live_;  // accepted and not ended
  std::deque<SequencePtr> queued_;                  // for the preparing threads
  std::deque<SequencePtr> prepared_;                // for the engine thread
  int waiting_ = 0;                                 // accepted and not admitted; at most max_queue
  int preparing_ = 0;                               // of these, taken by a preparing thread: bounds decoded media
  uint64_t next_id_ = 1;
  bool stop_ = false;
  Stats stats_;

  std::vector<std::thread> prepare_threads_;
  std::thread engine_thread_;
};

}  // namespace saccade
