// CUDA errors become exceptions that name the operation.
#pragma once

#include <cuda_runtime.h>

#include "base/error.h"
#include "kernels/cuda/stream.h"

namespace saccade::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail("cuda: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

// After a launch of `op`.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

// Launches with programmatic dependent launch: the kernel may start before its predecessor ends and calls pdl_wait()
// before it reads what that wrote. In clusters of `ctas` along x.
template <class... Params, class... Args>
void launch_pdl_clusters(const char* op, void (*kernel)(Params...), unsigned ctas, dim3 grid, dim3 block, size_t shared,
                         cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {ctas, 1, 1};
  config.attrs = attributes;
  config.numAttrs = ctas > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...), op);
}
template <class... Params, class... Args>
void launch_pdl(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                Args&&... args) {
  launch_pdl_clusters(op, kernel, 1, grid, block, shared, stream, std::forward<Args>(args)...);
}

// Clusters of `ctas` CTAs of the kernel that the device runs at once.
template <class... Params>
int clusters_at_once(const char* op, void (*kernel)(Params...), unsigned ctas, unsigned threads, int shared) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), op);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {ctas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(sm_count()) / ctas * ctas;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), op);
  return clusters;
}

}  // namespace saccade::cuda
