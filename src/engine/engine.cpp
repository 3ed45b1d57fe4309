#include <algorithm>
#include <future>
#include <new>

#include "base/error.h"
#include "base/memory.h"
#include "engine/engine_impl.h"
#include "engine/memory_plan.h"

namespace saccade {
namespace {

constexpr int kPrepareThreads = 2;

// One line about the exception in flight.
std::string current_error() {
  std::string text = "unknown error";
  try {
    throw;
  } catch (const std::bad_alloc&) {
    text = "out of memory";
  } catch (const std::exception& e) {
    text = e.what();
  } catch (...) {
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

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

void EngineImpl::step() {
  take_prepared();
  for (auto& s : scheduler_.take_cancelled()) end(std::move(s), FinishReason::kCancelled);

  const auto admitted = scheduler_.admit();
  const auto now = Clock::now();
  for (const auto& s : admitted) s->admitted = now;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& s : admitted) leave_queue(*s);
    stats_.running = static_cast<int>(scheduler_.running());
    stats_.free_pages = kv_.free_pages();
  }
  if (!admitted.empty()) prepare_wake_.notify_all();

  std::vector<Chunk> chunks = scheduler_.schedule();
  if (std::ranges::any_of(chunks, Runner::begins_media)) {
    // The tower takes long: nobody waits for it with a token that is ready.
    settle();
    chunks = scheduler_.schedule();
  }
  encode(chunks);
  if (chunks.empty())
    settle();
  else
    run(chunks);
}

void EngineImpl::encode(std::vector<Chunk>& chunks) {
  // Nobody waits for the next token: the pictures that follow in a request may go through the tower too.
  const bool ahead = std::ranges::all_of(chunks, [](const Chunk& c) { return c.sequence->prefilling(); });
  try {
    runner_.encode_media(chunks, ahead);
  } catch (...) {
    // What fails alone ends alone.
    std::erase_if(chunks, [&](const Chunk& c) {
      try {
        runner_.encode_media({&c, 1}, ahead);
        return false;
      } catch (...) {
        end_running(*c.sequence, FinishReason::kError, current_error());
        return true;
      }
    });
  }
}

void EngineImpl::take_prepared() {
  std::deque<SequencePtr> prepared;
  {
    const std::lock_guard lock(mutex_);
    prepared.swap(prepared_);
  }
  for (auto& s : prepared) {
    if (s->cancelled)
      end(std::move(s), FinishReason::kCancelled);
    else if (std::string error = s->result.error; !error.empty())
      end(std::move(s), FinishReason::kError, std::move(error));
    else
      scheduler_.add(std::move(s));
  }
}

void EngineImpl::run(std::span<const Chunk> chunks) {
  Tensor logits;
  try {
    logits = runner_.forward(chunks, device_sampler_.newest());
  } catch (...) {
    const std::string error = current_error();
    settle();
    const auto running = [](const Chunk& c) { return c.sequence->stage == Sequence::Stage::kRunning; };
    if (chunks.size() == 1) {
      if (running(chunks[0])) end_running(*chunks[0].sequence, FinishReason::kError, error);
      return;
    }
    // A step that fails together may succeed apart; what fails alone ends alone.
    for (const Chunk& c : chunks) {
      if (running(c)) run({&c, 1});
      settle();
    }
    return;
  }
  Choices choices = start_choosing(chunks, logits);
  settle();
  in_flight_ = std::move(choices);
  if (!placement_.cuda()) settle();
}

EngineImpl::Choices EngineImpl::start_choosing(std::span<const Chunk> chunks, const Tensor& logits) {
  Choices choices;
  for (const Chunk& c : chunks)
    if (c.sequence->cached == c.sequence->length())
      choices.push_back({.sequence = c.sequence, .logprob = {}, .error = {}});
  if (!placement_.cuda()) {
    choose(choices, logits);
    return choices;
  }
  std::vector<SequencePtr> sequences;
  for (const Choice& choice : choices) sequences.push_back(choice.sequence);
  device_sampler_.start(runner_.ctx(), logits, sequences);
  for (size_t i = 0; i < sequences.size(); ++i) {
    ++sequences[i]->unread;
    sequences[i]->newest_row = static_cast<int32_t>(i);
  }
  return choices;
}

void EngineImpl::choose(Choices& choices, const Tensor& logits) {
  const auto count = static_cast<int64_t>(choices.size());
  const auto choose_one = [&](Sampler& sampler, int64_t i) {
    Choice& choice = choices[static_cast<size_t>(i)];
    const Sequence& s = *choice.sequence;
    const std::span<const float> x{logits.row<float>(i), static_cast<size_t>(logits.dim(1))};
    try {
      choice.id = sampler.sample(x, s.sampling, s.seen, static_cast<uint64_t>(s.length()));
      const int alternatives = s.request.sampling.logprobs;
      if (alternatives >= 0) choice.logprob = token_logprob(x, choice.id, alternatives);
    } catch (...) {
      choice.error = current_error();
    }
  };
  if (count == 1) {
    choose_one(samplers_[0], 0);
  } else if (count > 1) {
    std::atomic<int64_t> next{0};
    pool_.run([&](int worker) {
      for (int64_t i = next++; i < count; i = next++) choose_one(samplers_[static_cast<size_t>(worker)], i);
    });
  }
}

void EngineImpl::read_device(Choices& choices) {
  const DeviceSampler::Drawn drawn = device_sampler_.finish();
  for (size_t i = 0; i < choices.size(); ++i) {
    Choice& choice = choices[i];
    --choice.sequence->unread;
    choice.id = drawn.ids[i];
    if (choice.id < 0)
      choice.error = kBadLogits;
    else if (!drawn.logits[i].empty())
      choice.logprob = token_logprob(drawn.logits[i], choice.id, choice.sequence->request.sampling.logprobs);
  }
}

// Hands out the tokens of the step in flight, if there is one. A sequence that ended after it was begun has no use for
// them.
void EngineImpl::settle() {
  if (!in_flight_) return;
  Choices choices = *std::exchange(in_flight_, std::nullopt);
  if (placement_.cuda()) read_device(choices);
  for (Choice& choice : choices) {
    const SequencePtr s = choice.sequence;
    if (s->stage != Sequence::Stage::kRunning) continue;
    try {
      if (!choice.error.empty()) throw Error(choice.error);
      deliver(*s, std::move(choice));
    } catch (...) {
      end_running(*s, FinishReason::kError, current_error());
    }
  }
}

void EngineImpl::deliver(Sequence& s, Choice choice) {
  const SamplingParams& params = s.request.sampling;
  const int32_t id = choice.id;
  Result& r = s.result;
  if (choice.logprob) r.logprobs.push_back(std::move(*choice.logprob));
  if (s.sampling.repetition_penalty != 1) s.seen.add(id);
  r.token_ids.push_back(id);
  s.last_token = Clock::now();
  if (r.token_ids.size() == 1) s.first_token = s.last_token;

  const auto& eos = model_->generation().eos_ids;
  FinishReason finish = FinishReason::kNone;
  std::string text;
  if (!params.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
    finish = FinishReason::kEos;
  } else {
    text = s.stop.push(s.detokenizer.push(id));
    if (static_cast<int64_t>(r.token_ids.size()) == s.max_new_tokens) finish = FinishReason::kLength;
  }
  if (finish != FinishReason::kNone) {
    text += s.stop.push(s.detokenizer.finish());
    text += s.stop.finish();
  }
  if (s.stop.matched()) finish = FinishReason::kStop;

  r.text += text;
  if (s.on_token) {
    try {
      s.on_token({text, id});
    } catch (...) {
      fail("on_token threw: {}", current_error());
    }
  }
  if (finish == FinishReason::kNone) return;
  r.boxes = model_->boxes(r.text, s.prompt.pictures);
  end_running(s, finish);
}

void EngineImpl::end_running(Sequence& s, FinishReason reason, std::string error) {
  end(scheduler_.remove(s), reason, std::move(error));
}

void EngineImpl::leave_queue(Sequence& s) {
  if (s.stage == Sequence::Stage::kRunning) return;
  if (s.stage == Sequence::Stage::kPreparing) --preparing_;
  s.stage = Sequence::Stage::kRunning;
  --waiting_;
}

// By value: the caller's last reference ends here. NOLINTNEXTLINE(performance-unnecessary-value-param)
void EngineImpl::end(SequencePtr s, FinishReason reason, std::string error) {
  const auto now = Clock::now();
  Result& r = s->result;
  Timings& t = r.timings;
  const auto none = Clock::time_point();
  const auto admitted = s->admitted == none ? now : s->admitted;
  t.queue = std::max(0.0, seconds(admitted - s->submitted) - s->prepare_seconds);
  t.decode_media = s->prompt.decode_seconds;
  t.preprocess = s->prompt.preprocess_seconds;
  if (s->first_token != none) {
    t.first_token = seconds(s->first_token - s->submitted);
    t.prefill = std::max(0.0, seconds(s->first_token - admitted) - t.encode);
    t.decode = seconds(s->last_token - s->first_token);
  }
  t.total = seconds(now - s->submitted);
  r.finish = reason;
  r.error = std::move(error);
  r.prompt_ids = std::move(s->prompt.ids);

  s->pages.release();
  s->prompt = {};
  s->embeddings.clear();
  {
    const std::lock_guard lock(mutex_);
    leave_queue(*s);
    s->stage = Sequence::Stage::kEnded;
    live_.erase(s->id);
    stats_.running = static_cast<int>(scheduler_.running());
    stats_.free_pages = kv_.free_pages();
  }
  prepare_wake_.notify_all();
  if (s->on_done) {
    try {
      s->on_done(r);
    } catch (...) {
      // The request is over; there is nobody left to tell.
    }
  }
}

}  // namespace saccade
