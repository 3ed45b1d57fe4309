// CUDA errors become exceptions that name the operation.
#pragma once

#include <cuda_runtime.h>

#include "base/error.h"

namespace saccade::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail("cuda: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

// After a launch of `op`.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

// Launches with programmatic dependent launch: the kernel may start before its predecessor ends and calls pdl_wait()
// before it reads what that wrote.
template <class... Params, class... Args>
void launch_pdl(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...), op);
}

}  // namespace saccade::cuda
