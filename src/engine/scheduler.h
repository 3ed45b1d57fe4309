// Scheduler: which sequences run, and how many tokens of each go into the next step.
//
// Admission is first come, first served among prepared requests, and only when the pages of the whole prompt and of
// every token it may generate can be reserved: an admitted sequence never waits for memory, so nothing can deadlock.
//
// A step takes one token of every decoding sequence. Of what is left of the token budget, the oldest prompt being
// prefilled has half, or what the others do not need, and those that need least come next: a short prompt does not wait
// for a long one, and a long one is not overtaken for ever. Equal prompts are read one after the other, not all at once
// to the end.
// The pictures that begin in it are encoded in the step: their tokens take about twice as long as others.
#pragma once

#include <deque>
#include <vector>

#include "engine/sequence.h"

namespace saccade {

// The next `tokens` tokens of a sequence, from `sequence->cached` on.
struct Chunk {
  SequencePtr sequence;
  int64_t tokens;
};

class Scheduler {
 public:
  // 1 <= max_batch <= max_batch_tokens
  Scheduler(KvCache& kv, int max_batch, int64_t max_batch_tokens)
      : kv_(kv), max_batch_(static_cast<size_t>(max_batch)), max_batch_tokens_(max_batch_tokens) {}

  void add(SequencePtr sequence) { waiting_.push_back(std::move(sequence)); }
  std::vector<SequencePtr> admit();  // those that start to run
  // Of the running ones that are not known to be complete; none is empty.
  std::vector<Chunk> schedule() const;
  std::vector<SequencePtr> take_cancelled();  // waiting and running ones
  SequencePtr remove(const Sequence& sequence);
  std::vector<SequencePtr> clear();

  bool idle() const { return waiting_.empty() && running_.empty(); }
  size_t running() const { return running_.size(); }

 private:
  KvCache& kv_;
  size_t max_batch_;
  int64_t max_batch_tokens_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;  // in order of admission
};

}  // namespace saccade
