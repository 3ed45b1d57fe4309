#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace saccade {

std::vector<SequencePtr> Scheduler::admit() {
  std::vector<SequencePtr> admitted;
  while (!waiting_.empty() && running_.size() < max_batch_) {
    Sequence& s = *waiting_.front();
    // The last token is never fed back, so it needs no place.
    auto lease = kv_.reserve(s.prompt_length() + s.max_new_tokens - 1);
    if (!lease) break;
    s.pages = std::move(*lease);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    admitted.push_back(running_.back());
  }
  return admitted;
}

std::vector<Chunk> Scheduler::schedule() const {
  std::vector<Chunk> chunks;
  for (const auto& s : running_)
    if (!s->prefilling() && s->generated() < s->max_new_tokens) chunks.push_back({s, 1});
  const size_t decodes = chunks.size();
  for (const auto& s : running_)
    if (s->prefilling()) chunks.push_back({s, 0});

  // The oldest prompt first, with half a step or what the others leave, then those that need least.
  const auto wanted = [](const Chunk& c) { return c.sequence->prompt_length() - c.sequence->cached; };
  const auto prefills = std::span(chunks).subspan(decodes);
  const auto younger = prefills.subspan(std::min<size_t>(prefills.size(), 1));
  std::ranges::stable_sort(younger, {}, wanted);
  int64_t budget = max_batch_tokens_ - static_cast<int64_t>(decodes), others = 0;
  for (const Chunk& c : younger) others += wanted(c);
  for (Chunk& c : prefills) {
    const int64_t most = &c == prefills.data() ? std::max((budget + 1) / 2, budget - others) : budget;
    c.tokens = std::min(wanted(c), most);
    budget -= c.tokens;
  }
  std::erase_if(chunks, [](const Chunk& c) { return c.tokens == 0; });
  return chunks;
}

std::vector<SequencePtr> Scheduler::take_cancelled() {
  std::vector<SequencePtr> taken;
  const auto take = [&](auto& from) {
    std::erase_if(from, [&](const SequencePtr& s) {
      if (!s->cancelled.load(std::memory_order_relaxed)) return false;
      taken.push_back(s);
      return true;
    });
  };
  take(waiting_);
  take(running_);
  return taken;
}

SequencePtr Scheduler::remove(const Sequence& sequence) {
  const auto it = std::find_if(running_.begin(), running_.end(), [&](auto& s) { return s.get() == &sequence; });
  CHECK(it != running_.end(), "sequence {} is not running", sequence.id);
  SequencePtr s = std::move(*it);
  running_.erase(it);
  return s;
}

std::vector<SequencePtr> Scheduler::clear() {
  std::vector<SequencePtr> all(std::move_iterator(waiting_.begin()), std::move_iterator(waiting_.end()));
  std::move(running_.begin(), running_.end(), std::back_inserter(all));
  waiting_.clear();
  running_.clear();
  return all;
}

}  // namespace saccade
