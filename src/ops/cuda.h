// What ops share on their way to CUDA kernels. In a build without CUDA, `if constexpr (kCuda)` leaves the calls out.
#pragma once

#include "kernels/cuda/attention.h"
#include "ops/ctx.h"
#include "ops/paged_kv.h"

namespace saccade::ops {

inline constexpr bool kCuda = device::kCudaBuilt;

// At the door of ops that have no CUDA kernel.
inline void cpu_only(const Ctx& c, const char* op) { CHECK(!c.cuda(), "{} has no CUDA kernel", op); }

inline cuda::Paged cuda_paged(const PagedKv& kv) {
  return {kv.q_offsets, kv.kv_lens, kv.page_table, kv.longest_q, kv.longest_kv};
}

}  // namespace saccade::ops
