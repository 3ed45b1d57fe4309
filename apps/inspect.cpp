// saccade inspect: what a model is, from its configuration and headers alone.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>

#include "base/error.h"
#include "console.h"
#include "flags.h"
#include "models/model.h"
#include "session.h"

namespace saccade::apps {
namespace {

// "vision.depth   32", nested objects by dotted names.
void append_config(std::string& text, const Json& config, const std::string& prefix) {
  for (const auto& [key, value] : config.items()) {
    if (value.is_object())
      append_config(text, value, prefix + key + ".");
    else
      fmt::format_to(std::back_inserter(text), "  {:<38}{}\n", prefix + key, value.dump());
  }
}

size_t kv_bytes_per_token(const KvLayout& kv) {
  return static_cast<size_t>(kv.layers) * static_cast<size_t>(kv.values_per_token) * dtype_size(kv.dtype);
}

// A model that does not fit this machine is inspected all the same.
struct Planned {
  std::optional<MemoryPlan> plan;
  std::string error;  // one line, where there is no plan
};

Planned plan_of(const EngineOptions& options) {
  try {
    return {Engine::plan(options), ""};
  } catch (const Error& e) {
    return {std::nullopt, e.what()};
  }
}

std::string describe(const ModelSummary& summary, const Planned& planned, bool tensors) {
  const ModelInfo& info = summary.info;
  std::string text;
  const auto row = [&](const char* key, const std::string& value) {
    fmt::format_to(std::back_inserter(text), "{:<14}{}\n", key, value);
  };
  row("model", info.name);
  row("architecture", info.architecture);
  row("parameters", human_count(static_cast<double>(info.parameters)));
  row("weights", fmt::format("{}{}, {} read for each token", human_bytes(summary.weight_bytes),
                             summary.mapped ? ", mapped from files" : "",
                             human_bytes(static_cast<size_t>(info.weight_bytes_per_token))));
  row("text", fmt::format("{} layers, hidden {}, vocabulary {}, context {} tokens", info.layers, info.hidden,
                          info.vocab, info.max_context));
  row("KV cache", fmt::format("{} for each token", human_bytes(kv_bytes_per_token(summary.kv))));
  text += (planned.plan ? describe_plan(*planned.plan) : "memory: " + planned.error) + "\nconfiguration\n";
  append_config(text, summary.config, "");
  if (!summary.tensors.empty()) row("tensors", std::to_string(summary.tensors.size()));
  if (!tensors) return text;
  for (const auto& tensor : summary.tensors) {
    const auto shape = fmt::format("[{}]", fmt::join(tensor.shape, ", "));
    fmt::format_to(std::back_inserter(text), "  {:<64}{:<6}{:<26}{:>12}  {}\n", tensor.name, tensor.dtype, shape,
                   human_bytes(tensor.bytes), tensor.file);
  }
  return text;
}

Json describe_json(const ModelSummary& summary, const Planned& planned, bool tensors) {
  Json json = {{"model", to_json(summary.info)},
               {"weight_bytes", summary.weight_bytes},
               {"weights_mapped", summary.mapped},
               {"kv_bytes_per_token", kv_bytes_per_token(summary.kv)},
               {"memory", planned.plan ? to_json(*planned.plan) : Json{{"error", planned.error}}},
               {"config", summary.config},
               {"tensor_count", summary.tensors.size()}};
  if (!tensors) return json;
  Json& rows = json["tensors"] = Json::array();
  for (const auto& tensor : summary.tensors) {
    rows.push_back({{"name", tensor.name},
                    {"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"bytes", tensor.bytes},
                    {"file", tensor.file}});
  }
  return json;
}

}  // namespace

int inspect(const Args& args) {
  CLI::App app("Shows a model's configuration, sizes and memory plan without reading its weights.", "saccade inspect");
  EngineFlags flags;
  bool json = false, tensors = false;
  flags.add_to(app);
  app.add_flag("--json", json, "print one JSON object");
  app.add_flag("--tensors", tensors, "list every tensor of the files");
  if (!parse(app, args)) return kOk;

  const EngineOptions options = flags.options();
  ModelOptions model;
  model.path = options.model;
  model.synthetic = options.synthetic;
  model.dtype = options.dtype == "f32" ? DType::kF32 : DType::kBF16;
  const ModelSummary summary = inspect_model(model);
  const Planned planned = plan_of(options);
  print_stdout(json ? dump_json(describe_json(summary, planned, tensors)) : describe(summary, planned, tensors));
  return kOk;
}

}  // namespace saccade::apps
