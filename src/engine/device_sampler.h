// DeviceSampler: the next tokens of a step from logits that are on a CUDA device. The device goes on with them by
// itself; the host reads them one step later.
#pragma once

#include <array>
#include <span>

#include "engine/sequence.h"
#include "ops/ops.h"

namespace saccade {

class DeviceSampler {
 public:
  explicit DeviceSampler(int max_batch) : max_batch_(max_batch) {}
  ~DeviceSampler();
  DeviceSampler(const DeviceSampler&) = delete;
  DeviceSampler& operator=(const DeviceSampler&) = delete;

  // Queues the choice of a token after logits [R,V], row i of sequences[i], R <= max_batch. Every sequence with an
  // unread token is among them. At most two starts may be unfinished.
  void start(const Ctx& c, const Tensor& logits, std::span<const SequencePtr> sequences);
  const Tensor& newest() const { return newest_; }  // ids [R] I32 of the last start with any, for the device to read

  struct Drawn {
    std::span<const int32_t> ids;                  // -1 where no token can be chosen
    std::vector<std::span<const float>> logits{};  // [V] of those that want log-probabilities, else empty
  };
  // Waits for the oldest start. Valid until the second start after it.
  Drawn finish();

 private:
  struct Turn {
    Event done = nullptr;
    Buffer rows, ids, seen, logits;   // pinned: SampleRow [R], I32 [R], bitmaps to upload, F32 [n,V]
    std::vector<int64_t> logit_rows;  // of each sequence in `logits`, or -1
    int64_t vocab = 0;
  };

  void place_seen(const Ctx& c, Turn& turn, std::span<const SequencePtr> sequences, size_t words);
  int32_t seen_row(const Sequence& s) const;  // -1 without a penalty

  const int max_batch_;
  std::array<Turn, 2> turns_;
  int64_t started_ = 0, finished_ = 0;
  Buffer ids_;  // [max_batch] I32, of the device
  Tensor newest_{nullptr, DType::kI32, {0}};

  // Bitmaps of the ids that sequences have seen, for repetition penalties; the device adds what it chooses.
  Buffer seen_;
  std::vector<uint64_t> seen_of_;  // the sequence of each row, 0 where it is free
};

}  // namespace saccade
