// x sigmoid(x), for epilogues of gate and up.
#pragma once

#include <cuda_runtime.h>

namespace saccade::cuda {

__device__ __forceinline__ float silu(float x) {
  float r;  // of infinity 0
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + __expf(-x)));
  return x * r;
}

}  // namespace saccade::cuda
