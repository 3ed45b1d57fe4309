#include "engine/device_sampler.h"

#include <algorithm>

namespace saccade {

std::span<const int32_t> DeviceSampler::sample(const Ctx& c, const Tensor& logits,
                                               std::span<const Sequence* const> sequences) {
  const auto rows = static_cast<int64_t>(sequences.size());
  CHECK(logits.dim(0) == rows, "{} for {} sequences", logits.describe(), rows);
  const auto penalised = [](const Sequence* s) { return s->sampling.repetition_penalty != 1; };
  const int64_t seen_rows = std::ranges::count_if(sequences, penalised);
  const int64_t words = (logits.dim(1) + 31) / 32;
  const auto row_bytes = static_cast<int64_t>(sizeof(ops::SampleRow));
  inputs_.reset(StepInputs::bytes_of(rows * row_bytes) + StepInputs::bytes_of(seen_rows * words));
  const Tensor params = inputs_.tensor(DType::kU8, {rows, row_bytes});
  const Tensor seen = inputs_.i32({seen_rows, words});

  auto* row = reinterpret_cast<ops::SampleRow*>(params.data);
  int32_t seen_row = 0;
  for (const Sequence* s : sequences) {
    const Sampling& p = s->sampling;
    *row = {.temperature = p.temperature,
            .top_p = p.top_p,
            .min_p = p.min_p,
            .repetition_penalty = p.repetition_penalty,
            .top_k = p.top_k,
            .seed = p.seed,
            .position = static_cast<uint64_t>(s->length())};
    if (penalised(s)) {
      std::ranges::copy(s->seen.words(), reinterpret_cast<uint32_t*>(seen.row<int32_t>(seen_row)));
      row->seen_row = seen_row++;
    }
    ++row;
  }
  inputs_.upload(c.stream);
  const bool greedy = std::ranges::all_of(sequences, [](const Sequence* s) { return s->sampling.temperature == 0; });
  const Tensor ids = ops::sample(c, logits, inputs_.placed(params), inputs_.placed(seen), greedy);
  if (ids_.size() < ids.bytes()) ids_ = Buffer(2 * ids.bytes(), Memory::kPinned);
  device::copy(ids_.data(), ids.data, ids.bytes(), c.stream);
  device::synchronize(c.stream);
  return {reinterpret_cast<const int32_t*>(ids_.data()), sequences.size()};
}

}  // namespace saccade
