// What the engine's thread does in a step, from requests that were prepared to tokens that are handed out.
#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "engine/engine_impl.h"

namespace saccade {

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
  const bool busy = in_flight_.has_value();
  auto begun = Clock::now();
  encode(chunks);
  if (chunks.empty())
    settle();
  else
    run(chunks);
  if (busy) begun = Clock::now();  // a device came to the media when the step before was done
  runner_.wait_for_media(begun);
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
