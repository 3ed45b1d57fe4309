#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "engine/kv_cache.h"

namespace saccade {
namespace {

constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max() / kPageTokens;  // slots are I32
constexpr size_t kAssumedMemory = size_t{8} << 30;                                // where the system does not tell
constexpr int kMaxBatch = 4096, kMaxBatchTokens = 1 << 20, kMaxThreads = 4096;

double gib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) fail("{}: expected {} to {}, found {}", field, low, high, value);
}

}  // namespace

void check_options(const EngineOptions& o) {
  check_range("threads", o.threads, 0, kMaxThreads);
  check_range("max_batch", o.max_batch, 0, kMaxBatch);
  check_range("max_batch_tokens", o.max_batch_tokens, o.max_batch_tokens == 0 ? 0 : o.max_batch, kMaxBatchTokens);
  check_range("max_queue", o.max_queue, 1, std::numeric_limits<int>::max());
  check_range("max_context", o.max_context, 0, std::numeric_limits<int32_t>::max());
}

MemoryPlan plan_memory(const MemoryNeeds& needs, const EngineOptions& options, size_t available) {
  const auto page = KvCache::page_bytes(needs.kv);
  if (!page || *page == 0) fail("kv cache: {} values in {} layers", needs.kv.values_per_token, needs.kv.layers);
  if (options.max_context > needs.max_context)
    fail("max_context: the model's limit is {} tokens, found {}", needs.max_context, options.max_context);

  if (available == 0) available = kAssumedMemory;
  const auto step = checked_add(needs.vision, needs.workspace);
  const auto taken = step ? checked_add(needs.weights, *step) : std::nullopt;
  if (!taken || *taken >= available)
    fail(
        "the model does not fit: {:.2f} GiB of memory are available, weights take {:.2f}{}, the largest step {:.2f} "
        "(of {} tokens; max_batch_tokens), the largest picture {:.2f}",
        gib(available), gib(needs.weights), needs.mapped_weights > 0 ? " beside what is mapped" : "",
        gib(needs.workspace), options.max_batch_tokens, gib(needs.vision));
  const uint64_t room = available - *taken;
  const uint64_t left = options.kv_bytes > 0 ? room : room - std::min<uint64_t>(needs.mapped_weights, room / 2);

  const int64_t context = options.max_context > 0 ? options.max_context : needs.max_context;
  const int64_t sequence_pages = KvCache::pages_for(context);
  const auto affordable = static_cast<int64_t>(std::min<uint64_t>(left / 2 / *page, kMaxPages));
  int64_t pages = std::min(sequence_pages * options.max_batch, affordable);
  if (options.kv_bytes > 0) {
    pages = static_cast<int64_t>(std::min<uint64_t>(options.kv_bytes / *page, kMaxPages));
    if (pages == 0)
      fail("kv_bytes: a page of {} tokens takes {} bytes, found {}", kPageTokens, *page, options.kv_bytes);
    if (options.kv_bytes > left)
      fail("kv_bytes: {:.2f} GiB are left beside weights and workspace, found {:.2f}", gib(left),
           gib(options.kv_bytes));
  }
  if (pages == 0)
    fail("the model does not fit: {:.2f} GiB are left for the KV cache, a page of {} tokens takes {:.2f}", gib(left),
         kPageTokens, gib(*page));
  if (options.max_context > 0 && pages < sequence_pages)
    fail("max_context: {} tokens take {:.2f} GiB of KV cache; {} tokens fit", options.max_context,
         gib(static_cast<uint64_t>(sequence_pages) * *page), pages * kPageTokens);

  MemoryPlan plan;
  plan.weight_bytes = needs.weights + needs.mapped_weights;
  plan.kv_bytes = static_cast<size_t>(pages) * *page;
  plan.kv_bytes_per_token = *page / kPageTokens;
  plan.context_tokens = pages * kPageTokens;
  plan.workspace_bytes = needs.workspace;
  plan.vision_bytes = needs.vision;
  plan.available_bytes = available;
  plan.weights_mapped = needs.mapped_weights > 0;
  plan.weight_bytes_owned = needs.weights;
  plan.weight_bytes_per_token = needs.weights_per_token;
  return plan;
}

int64_t context_limit(const MemoryPlan& plan, const EngineOptions& options, int64_t model_max_context) {
  const int64_t wanted = options.max_context > 0 ? options.max_context : model_max_context;
  return std::min({wanted, model_max_context, plan.context_tokens});
}

}  // namespace saccade
