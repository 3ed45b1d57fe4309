// MemoryPlan: what fits, decided before weights are read.
#pragma once

#include <cstddef>

#include "models/model.h"

namespace saccade {

// What a model takes apart from the KV cache, in bytes.
struct MemoryNeeds {
  size_t weights = 0;         // in memory of our own
  size_t mapped_weights = 0;  // besides, used where files are mapped
  size_t weights_per_token = 0;
  size_t vision = 0;     // largest picture in the vision tower
  size_t workspace = 0;  // largest step
  int64_t max_context = 0;
  KvLayout kv;
};

// The KV cache is options.kv_bytes when given. Otherwise it holds max_batch sequences of the whole context, but takes
// at most half of the memory that weights, workspace and vision leave (mapped weights claim at most half of what
// workspace and vision leave, and nothing against options.kv_bytes: the rest can be read again). Pages are touched only
// when used. Throws Error when nothing useful fits, or when less
// fits than options.max_context asks for.
MemoryPlan plan_memory(const MemoryNeeds& needs, const EngineOptions& options, size_t available);

// Longest sequence that a plan allows.
int64_t context_limit(const MemoryPlan& plan, const EngineOptions& options, int64_t model_max_context);

// Throws Error naming the field.
void check_options(const EngineOptions& options);

}  // namespace saccade
