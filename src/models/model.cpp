#include "models/model.h"

namespace saccade {

void ModelSummary::describe_checkpoint(const ModelOptions& options) {
  const std::vector<StoredTensor> stored = open_checkpoint(options.path)->list();
  mapped = true;
  converted = converted_bytes(stored, options.dtype);
  weight_bytes = 0;
  for (const StoredTensor& t : stored) {
    tensors.push_back({t.name, t.dtype, t.file, t.shape, t.bytes});
    weight_bytes += t.bytes;
  }
}

}  // namespace saccade
