// What every use of wgmma needs around its products (PTX ISA, "wgmma").
#pragma once

namespace saccade::cuda {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits of different kPlace are not merged.
template <int kPending, int kPlace = 0>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;  // %1" ::"n"(kPending), "n"(kPlace) : "memory");
}

}  // namespace saccade::cuda
