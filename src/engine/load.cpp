// From a checkpoint folder to an engine.
#include <utility>

#include "base/error.h"
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

struct Planned {
  Placement placement;
  EngineOptions options;
  MemoryPlan memory;
};

Planned plan_all(const EngineOptions& asked) {
  const ModelSummary summary = inspect_model(model_options(asked));
  Planned p;
  p.placement = place(asked.device, summary);
  p.options = with_defaults(asked, p.placement);
  check_options(p.options);
  const auto tokens = static_cast<size_t>(p.options.max_batch_tokens);
  const bool mapped = summary.mapped && !p.placement.cuda();
  const size_t own = mapped ? summary.converted.owned : summary.weight_bytes;
  const MemoryNeeds needs{.weights = p.placement.cuda() ? summary.cuda_weight_bytes : own,
                          .mapped_weights = mapped ? summary.weight_bytes - summary.converted.stored : 0,
                          .weights_per_token = static_cast<size_t>(summary.info.weight_bytes_per_token),
                          .vision = summary.vision_workspace,
                          .workspace = summary.step_workspace + summary.step_workspace_per_token * tokens,
                          .max_context = summary.info.max_context,
                          .kv = summary.kv};
  p.memory = plan_memory(needs, p.options, p.placement.available);
  p.memory.device = p.placement.name;
  return p;
}

}  // namespace

MemoryPlan Engine::plan(const EngineOptions& options) { return plan_all(options).memory; }

std::unique_ptr<Engine> Engine::load(const EngineOptions& asked) {
  const Planned p = plan_all(asked);
  const auto start = Clock::now();
  ModelOptions options = model_options(p.options);
  options.memory = p.placement.memory;
  if (p.placement.cuda()) device::use(p.placement.index);
  auto engine = std::make_unique<EngineImpl>(load_model(options), p.options, p.memory, p.placement);
  engine->set_load_seconds(seconds(Clock::now() - start));
  return engine;
}

}  // namespace saccade
