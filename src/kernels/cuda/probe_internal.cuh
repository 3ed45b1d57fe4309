#pragma once

namespace saccade::cuda {

// Launches `steps` steps of wgmma on every SM and returns the operations of all of them.
double wgmma_probe(int steps, float* out);

}  // namespace saccade::cuda
