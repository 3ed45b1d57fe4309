// The models that Saccade knows: one line each.
#include <filesystem>

#include "base/error.h"
#include "models/deepseek_vl2/model.h"
#include "models/model.h"
#include "models/qwen2_5_vl/model.h"

namespace saccade {
namespace {

struct Entry {
  const char* model_type;  // "model_type" of config.json
  std::unique_ptr<Model> (*load)(const ModelOptions&);
  ModelSummary (*inspect)(const ModelOptions&);
  std::vector<std::string> (*synthetic_names)();
};

constexpr Entry kModels[] = {
    {"deepseek_vl_v2", deepseek_vl2::load, deepseek_vl2::inspect, deepseek_vl2::synthetic_names},
    {"qwen2_5_vl", qwen2_5_vl::load, qwen2_5_vl::inspect, qwen2_5_vl::synthetic_names},
};

const Entry& by_synthetic_name(const std::string& name) {
  for (const Entry& entry : kModels) {
    for (const std::string& known : entry.synthetic_names()) {
      if (known == name) return entry;
    }
  }
  fail("synthetic model {}: unknown name, expected one of {}", name, fmt::join(synthetic_names(), ", "));
}

const Entry& by_config(const std::string& folder) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) fail("{}: no such model folder", folder);
  const std::string path = (fs::path(folder) / "config.json").string();
  const Json config = read_json_file(path);
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string()) fail("{}: model_type is missing or no string", path);
  std::vector<std::string> known;
  for (const Entry& entry : kModels) {
    if (*type == entry.model_type) return entry;
    known.emplace_back(entry.model_type);
  }
  fail("{}: unknown architecture: model_type is {}, expected one of {}", path, type->get<std::string>(),
       fmt::join(known, ", "));
}

const Entry& entry_of(const ModelOptions& options) {
  if (options.path.empty() == options.synthetic.empty()) fail("model: give either a folder or a synthetic name");
  return options.synthetic.empty() ? by_config(options.path) : by_synthetic_name(options.synthetic);
}

}  // namespace

std::unique_ptr<Model> load_model(const ModelOptions& options) { return entry_of(options).load(options); }
ModelSummary inspect_model(const ModelOptions& options) { return entry_of(options).inspect(options); }

std::vector<std::string> synthetic_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kModels) {
    for (std::string& name : entry.synthetic_names()) names.push_back(std::move(name));
  }
  return names;
}

}  // namespace saccade
