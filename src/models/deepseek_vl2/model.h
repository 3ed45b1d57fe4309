// DeepSeek-VL2 as the engine sees it.
#pragma once

#include "models/model.h"

namespace saccade::deepseek_vl2 {

std::unique_ptr<Model> load(const ModelOptions& options);
ModelSummary inspect(const ModelOptions& options);
std::vector<std::string> synthetic_names();

}  // namespace saccade::deepseek_vl2
