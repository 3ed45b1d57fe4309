#include "engine/device_sampler.h"

#include <algorithm>

namespace saccade {
namespace {

bool penalised(const SequencePtr& s) { return s->sampling.repetition_penalty != 1; }

void reserve(Buffer& pinned, size_t bytes) {
  if (pinned.size() < bytes) pinned = Buffer(bytes, Memory::kPinned);
}

}  // namespace

DeviceSampler::~DeviceSampler() {
  for (const Turn& turn : turns_)
    if (turn.done) device::delete_event(turn.done);
}

void DeviceSampler::start(const Ctx& c, const Tensor& logits, std::span<const SequencePtr> sequences) {
  CHECK(started_ - finished_ < 2, "{} steps are not finished", started_ - finished_);
  const auto rows = static_cast<int64_t>(sequences.size()), vocab = logits.dim(1);
  CHECK(logits.dim(0) == rows && rows <= max_batch_, "{} for {} sequences", logits.describe(), rows);
  Turn& turn = turns_[static_cast<size_t>(started_ % 2)];
  if (!turn.done) turn.done = device::new_event();
  turn.vocab = vocab;
  turn.logit_rows.assign(sequences.size(), -1);
  if (rows > 0) {
    // At once for all that may come: the device may still read what the turn before the last one left.
    const auto most = static_cast<size_t>(max_batch_);
    reserve(turn.rows, most * sizeof(ops::SampleRow));
    reserve(turn.ids, most * sizeof(int32_t));
    const int64_t words = (vocab + 31) / 32;
    place_seen(c, turn, sequences, static_cast<size_t>(words));
    auto* row = reinterpret_cast<ops::SampleRow*>(turn.rows.data());
    for (const SequencePtr& s : sequences) {
      const Sampling& p = s->sampling;
      *row++ = {.temperature = p.temperature,
                .top_p = p.top_p,
                .min_p = p.min_p,
                .repetition_penalty = p.repetition_penalty,
                .top_k = p.top_k,
                .seen_row = seen_row(*s),
                .seed = p.seed,
                .position = static_cast<uint64_t>(s->length())};
    }
    const Tensor params(turn.rows.data(), DType::kU8, {rows, static_cast<int64_t>(sizeof(ops::SampleRow))});
    const Tensor seen(seen_.data(), DType::kI32, {static_cast<int64_t>(seen_of_.size()), words});
    const Tensor ids_for_host(turn.ids.data(), DType::kI32, {rows});
    if (ids_.size() == 0) ids_ = Buffer(most * sizeof(int32_t), Memory::kCuda);
    newest_ = Tensor(ids_.data(), DType::kI32, {rows});
    const bool greedy = std::ranges::all_of(sequences, [](auto& s) { return s->sampling.temperature == 0; });
    ops::sample_(c, logits, params, seen, greedy, newest_, ids_for_host);

    const auto wants = [](const SequencePtr& s) { return s->request.sampling.logprobs >= 0; };
    const auto row_bytes = static_cast<size_t>(vocab) * sizeof(float);
    reserve(turn.logits, static_cast<size_t>(std::ranges::count_if(sequences, wants)) * row_bytes);
    int64_t wanted = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (!wants(sequences[i])) continue;
      const Tensor from = logits[static_cast<int64_t>(i)];
      device::copy(turn.logits.data() + static_cast<size_t>(wanted) * row_bytes, from.data, row_bytes, c.stream);
      turn.logit_rows[i] = wanted++;
    }
  }
  device::record(turn.done, c.stream);
  ++started_;
}

DeviceSampler::Drawn DeviceSampler::finish() {
  CHECK(finished_ < started_, "nothing was started");
  const Turn& turn = turns_[static_cast<size_t>(finished_++ % 2)];
  device::wait(turn.done);
  const size_t rows = turn.logit_rows.size();
  Drawn drawn{.ids = {reinterpret_cast<const int32_t*>(turn.ids.data()), rows}};
  for (const int64_t row : turn.logit_rows) {
    if (row < 0)
      drawn.logits.emplace_back();
    else
      drawn.logits.emplace_back(reinterpret_cast<const float*>(turn.logits.data()) + row * turn.vocab,
                                static_cast<size_t>(turn.vocab));
  }
  return drawn;
}

void DeviceSampler::place_seen(const Ctx& c, Turn& turn, std::span<const SequencePtr> sequences, size_t words) {
  for (uint64_t& owner : seen_of_)
    if (std::ranges::none_of(sequences, [&](auto& s) { return s->id == owner; })) owner = 0;
  std::vector<const Sequence*> fresh;
  for (const SequencePtr& s : sequences)
    if (penalised(s) && std::ranges::find(seen_of_, s->id) == seen_of_.end()) fresh.push_back(s.get());
  if (fresh.empty()) return;

  const size_t bytes = words * sizeof(uint32_t);
  if (seen_of_.empty()) {
    seen_of_.resize(static_cast<size_t>(max_batch_));
    seen_ = Buffer(seen_of_.size() * bytes, Memory::kCuda);
  }
  reserve(turn.seen, fresh.size() * bytes);
  std::byte* staged = turn.seen.data();
  for (const Sequence* s : fresh) {
    CHECK(s->unread == 0, "the host does not know what sequence {} has seen", s->id);
    const auto free = std::ranges::find(seen_of_, uint64_t{0});
    *free = s->id;
    std::ranges::copy(s->seen.words(), reinterpret_cast<uint32_t*>(staged));
    device::copy(seen_.data() + static_cast<size_t>(free - seen_of_.begin()) * bytes, staged, bytes, c.stream);
    staged += bytes;
  }
}

int32_t DeviceSampler::seen_row(const Sequence& s) const {
  const auto row = std::ranges::find(seen_of_, s.id);
  return row == seen_of_.end() ? -1 : static_cast<int32_t>(row - seen_of_.begin());
}

}  // namespace saccade
