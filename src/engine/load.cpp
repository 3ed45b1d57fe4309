// From a checkpoint folder to an engine.
#include <utility>

#include "base/error.h"
#include "base/memory.h"
#include "engine/engine_impl.h"
#include "engine/memory_plan.h"

namespace saccade {
namespace {

ModelOptions model_options(const EngineOptions& o) {
  check_options(o);
  if (o.model.empty() == o.synthetic.empty()) fail("expected either a model folder or a synthetic name");
  if (o.dtype != "bf16" && o.dtype != "f32") fail("dtype: expected bf16 or f32, found \"{}\"", o.dtype);
  return {.path = o.model,
          .synthetic = o.synthetic,
          .seed = o.synthetic_seed,
          .dtype = o.dtype == "f32" ? DType::kF32 : DType::kBF16,
          .on_progress = o.on_load_progress};
}

}  // namespace

MemoryPlan Engine::plan(const EngineOptions& options) {
  const ModelSummary summary = inspect_model(model_options(options));
  const auto tokens = static_cast<size_t>(options.max_batch_tokens);
  const size_t mapped = summary.mapped ? summary.weight_bytes - summary.converted.stored : 0;
  const MemoryNeeds needs{.weights = summary.mapped ? summary.converted.owned : summary.weight_bytes,
                          .mapped_weights = mapped,
                          .weights_per_token = static_cast<size_t>(summary.info.weight_bytes_per_token),
                          .vision = summary.vision_workspace,
                          .workspace = summary.step_workspace + summary.step_workspace_per_token * tokens,
                          .max_context = summary.info.max_context,
                          .kv = summary.kv};
  return plan_memory(needs, options, available_memory_bytes());
}

std::unique_ptr<Engine> Engine::load(const EngineOptions& options) {
  const MemoryPlan plan = Engine::plan(options);
  const auto start = Clock::now();
  auto engine = std::make_unique<EngineImpl>(load_model(model_options(options)), options, plan);
  engine->set_load_seconds(seconds(Clock::now() - start));
  return engine;
}

}  // namespace saccade
