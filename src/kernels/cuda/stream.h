// What callers of CUDA kernels need to know of the runtime, without its headers.
#pragma once

struct CUstream_st;

namespace saccade::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Kernels of Hopper (sm_90a) run where the device has them, unless SACCADE_CUDA_KERNELS=portable asks for those that
// every device from sm_80 on runs.
bool use_hopper();
int sm_count();  // of the current device

}  // namespace saccade::cuda
