// Entry points of Qwen2.5-VL for the registry.
#pragma once

#include "models/model.h"

namespace saccade::qwen2_5_vl {

std::unique_ptr<Model> load(const ModelOptions& options);
ModelSummary inspect(const ModelOptions& options);
std::vector<std::string> synthetic_names();

}  // namespace saccade::qwen2_5_vl
