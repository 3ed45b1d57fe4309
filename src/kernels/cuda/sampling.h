// The next token from logits, without sorting the vocabulary. The definition of what is kept and how ties fall is that
// of engine/sampler.h: repetition penalty, temperature, top-k, top-p, min-p.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"
#include "tensor/tensor.h"

namespace saccade::cuda {

struct SampleRow {  // one for each row of logits, where the device reads it: not what a kernel before has written
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  int32_t top_k = 0;
  int32_t seen_row = -1;  // row of `seen`, or -1 when there is no penalty
  uint64_t seed = 0, position = 0;
};

// logits [R,V] F32; rows: R of them; seen: bitmap rows of ceil(V/32) words of the ids of a sequence
// (empty when nobody has a penalty), to which the chosen id is added; ids [R] I32 out, -1 where a logit is NaN or
// +infinity or all are -infinity; the same to ids_for_host. rows and ids_for_host may be pinned memory of the host, out
// of which kernels of the next step would get ids a microsecond later. `all_greedy`: no row has a temperature. A draw
// is a function of (seed, position) and the row's logits alone: Philox4x32-10 as in engine/sampler.cpp.
size_t sample_workspace_bytes(int64_t rows, int64_t vocab);
void sample(Stream stream, const Tensor& logits, const SampleRow* rows, const Tensor& seen, bool all_greedy,
            const Tensor& workspace, const Tensor& ids, const Tensor& ids_for_host);

}  // namespace saccade::cuda
