// Descriptors of tensors that bulk tensor copies read.
#pragma once

#include <cuda.h>

#include <array>

#include "kernels/cuda/check.cuh"

namespace saccade::cuda {

// The innermost dimension first, without its stride, which is that of its type; strides in bytes. The driver's function
// is looked up, so that nothing links to the driver.
template <size_t kRank>
CUtensorMap tensor_map(CUtensorMapDataType type, const void* data, std::array<cuuint64_t, kRank> dims,
                       std::array<cuuint64_t, kRank - 1> strides, std::array<cuuint32_t, kRank> box,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (!entry) fail("cuda: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(entry);
  }();
  std::array<cuuint32_t, kRank> steps;
  steps.fill(1);
  CUtensorMap map;
  const CUresult result =
      encode(&map, type, kRank, const_cast<void*>(data), dims.data(), strides.data(), box.data(), steps.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail("cuda: tensor map: error {}", static_cast<int>(result));
  return map;
}

}  // namespace saccade::cuda
