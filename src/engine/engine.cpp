#include <algorithm>
#include <future>

#include "base/error.h"
#include "base/memory.h"
#include "engine/engine_impl.h"
#include "engine/memory_plan.h"

namespace saccade {
namespace {

constexpr int kPrepareThreads = 2;

}  // namespace

std::unique_ptr<Engine> make_engine(std::unique_ptr<Model> model, const EngineOptions& options,
                                    const MemoryPlan& plan) {
  return std::make_unique<EngineImpl>(std::move(model), with_defaults(options, {}), plan, Placement{});
}

std::unique_ptr<Engine> make_engine(std::unique_ptr<Model> model, const EngineOptions& asked) {
  check_options(asked);
  const EngineOptions options = with_defaults(asked, {});
  const MemoryNeeds needs{.vision = model->vision_workspace_bytes(),
                          .workspace = model->step_workspace_bytes(options.max_batch_tokens),
                          .max_context = model->info().max_context,
                          .kv = model->kv_layout()};
  const MemoryPlan plan = plan_memory(needs, options, available_memory_bytes());
  return make_engine(std::move(model), options, plan);
}

EngineImpl::EngineImpl(std::unique_ptr<Model> model, const EngineOptions& options, const MemoryPlan& plan,
                       const Placement& placement)
    : options_(options),
      plan_(plan),
      placement_(placement),
      model_(std::move(model)),
      info_(model_->info()),
      pool_(options.threads),
      kv_(model_->kv_layout(), plan.context_tokens / kPageTokens, placement.memory),
      scheduler_(kv_, options.max_batch, options.max_batch_tokens),
      runner_(*model_, kv_, pool_, placement.memory, options.on_tap),
      samplers_(static_cast<size_t>(pool_.size())),
      device_sampler_(options.max_batch) {
  info_.max_context = context_limit(plan, options, info_.max_context);
  stats_.total_pages = stats_.free_pages = kv_.total_pages();
  for (int i = 0; i < kPrepareThreads; ++i) prepare_threads_.emplace_back([this] { prepare_loop(); });
  engine_thread_ = std::thread([this] { engine_loop(); });
}

EngineImpl::~EngineImpl() {
  CHECK(std::this_thread::get_id() != engine_thread_.get_id(), "an engine cannot be destroyed by its own callback");
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    for (auto& [id, s] : live_) s->cancelled = true;
    std::move(queued_.begin(), queued_.end(), std::back_inserter(prepared_));
    queued_.clear();
  }
  prepare_wake_.notify_all();
  engine_wake_.notify_all();
  for (auto& t : prepare_threads_) t.join();
  engine_thread_.join();
}

uint64_t EngineImpl::submit(Request request, OnToken on_token, OnDone on_done) {
  const Sampling sampling = resolve_sampling(request.sampling, model_->generation());
  auto s = std::make_shared<Sequence>(std::move(request), sampling, model_->tokenizer(), info_.vocab);
  s->on_token = std::move(on_token);
  s->on_done = std::move(on_done);
  s->submitted = Clock::now();
  uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (stop_) fail("the engine is shutting down");
    if (waiting_ >= options_.max_queue) fail("queue full: {} requests are waiting (max_queue)", waiting_);
    id = s->id = next_id_++;
    live_.emplace(id, s);
    queued_.push_back(std::move(s));
    ++waiting_;
  }
  prepare_wake_.notify_one();
  return id;
}

void EngineImpl::cancel(uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(id);
    if (it == live_.end()) return;
    it->second->cancelled = true;
    // Not begun yet: nothing to wait for.
    const auto queued = std::find(queued_.begin(), queued_.end(), it->second);
    if (queued == queued_.end()) return;
    prepared_.push_back(std::move(*queued));
    queued_.erase(queued);
  }
  engine_wake_.notify_one();
}

Result EngineImpl::generate(Request request, OnToken on_token) {
  if (std::this_thread::get_id() == engine_thread_.get_id()) fail("generate() waits: a callback may only submit()");
  // Shared: the waiting side may return while set_value() is still on its way out.
  auto done = std::make_shared<std::promise<Result>>();
  auto future = done->get_future();
  submit(std::move(request), std::move(on_token), [done](const Result& r) { done->set_value(r); });
  Result result = future.get();
  if (result.finish == FinishReason::kError) throw Error(result.error);
  return result;
}

EngineImpl::Stats EngineImpl::stats() const {
  const std::lock_guard lock(mutex_);
  Stats s = stats_;
  s.waiting = waiting_;
  return s;
}

// ---- preparing threads

void EngineImpl::prepare_loop() {
  if (placement_.cuda()) device::use(placement_.index);
  for (;;) {
    SequencePtr s;
    {
      std::unique_lock lock(mutex_);
      // No further ahead than a batch, so that a queue of pictures does not fill the memory.
      prepare_wake_.wait(lock, [&] { return stop_ || (!queued_.empty() && preparing_ < options_.max_batch); });
      if (stop_) return;
      s = std::move(queued_.front());
      queued_.pop_front();
      s->stage = Sequence::Stage::kPreparing;
      ++preparing_;
    }
    const auto start = Clock::now();
    try {
      prepare(*s);
    } catch (...) {
      s->result.error = current_error();
    }
    s->prepare_seconds = seconds(Clock::now() - start);
    {
      const std::lock_guard lock(mutex_);
      prepared_.push_back(std::move(s));
    }
    engine_wake_.notify_one();
  }
}

void EngineImpl::prepare(Sequence& s) const {
  s.prompt = model_->prepare(s.request.messages);
  const Prompt& p = s.prompt;
  const int64_t tokens = s.prompt_length(), limit = info_.max_context;
  if (tokens == 0) fail("messages: the prompt is empty");
  if (tokens >= limit)
    fail("the prompt takes {} tokens and needs room for an answer; the context holds {} (max_context)", tokens, limit);
  CHECK(p.positions.size() == p.ids.size() * static_cast<size_t>(model_->position_axes()));
  CHECK(p.media.size() == p.media_at.size());
  int64_t end = 0;
  for (size_t i = 0; i < p.media.size(); ++i) {
    CHECK(p.media_at[i] >= end && p.media[i]->tokens > 0, "media {} at {} overlaps", i, p.media_at[i]);
    end = p.media_at[i] + p.media[i]->tokens;
    s.media_tokens.push_back(p.media[i]->tokens);
  }
  CHECK(end <= tokens, "media end at {} of {} tokens", end, tokens);
  for (const int32_t id : p.ids) CHECK(id >= 0 && id < info_.vocab, "id {} of {}", id, info_.vocab);

  s.embeddings.resize(p.media.size());
  s.max_new_tokens = std::min<int64_t>(s.request.sampling.max_tokens, limit - tokens);
  if (s.sampling.repetition_penalty != 1)
    for (const int32_t id : p.ids) s.seen.add(id);
}

// ---- engine thread

void EngineImpl::engine_loop() {
  if (placement_.cuda()) device::use(placement_.index);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      engine_wake_.wait(
          lock, [&] { return !prepared_.empty() || !scheduler_.idle() || in_flight_ || (stop_ && live_.empty()); });
      if (stop_ && live_.empty() && !in_flight_) return;
    }
    try {
      step();
    } catch (...) {
      const std::string error = current_error();
      for (auto& s : scheduler_.clear()) end(std::move(s), FinishReason::kError, error);
    }
  }
}

}  // namespace saccade
