// CTAs of a cluster that work on one thing: what they tell each other goes through shared memory. A team of one CTA
// needs no clusters and runs on every device.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {

using u64 = unsigned long long;

inline constexpr unsigned kAll = ~0u;

// The sum fits in 64 bits.
__device__ __forceinline__ u64 warp_sum(u64 v) {
  constexpr uint32_t kPiece = (1u << 27) - 1;  // 32 of them fit a word
  const u64 low = __reduce_add_sync(kAll, static_cast<uint32_t>(v) & kPiece);
  const u64 middle = __reduce_add_sync(kAll, static_cast<uint32_t>(v >> 27) & kPiece);
  const u64 high = __reduce_add_sync(kAll, static_cast<uint32_t>(v >> 54));
  return low + (middle << 27) + (high << 54);
}

// The lane with whose value the running sum over lanes first exceeds `target`, which is below the sum of all.
struct Place {
  int lane;
  u64 before;  // sum of the lanes before it
};
__device__ __noinline__ Place first_beyond(u64 value, u64 target) {
  u64 sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 left = __shfl_up_sync(kAll, sum, step);
    if (threadIdx.x % 32 >= step) sum += left;
  }
  const int lane = __popc(__ballot_sync(kAll, sum <= target));
  return {lane, __shfl_sync(kAll, sum - value, lane)};
}

// kCtas CTAs, a cluster along x, seen from one warp of one of them. The first warp of a CTA speaks for it.
//
// Nothing waits for a barrier of the cluster, whose release would wait for global memory: messages are remote stores
// that complete on an mbarrier of the receiver. Threads of a CTA must meet (__syncthreads) between reading
// what was collected or told and the next post().
template <int kCtas>
struct Team {
  static constexpr int kWarps = kCtas == 1 ? 32 : 16;
  static constexpr int kThreads = 32 * kWarps;

  struct alignas(16) Pair {
    u64 a, b;
  };
  struct Shared {
    Pair mail[2][kCtas];  // of alternate posts
    Pair note[2];
    u64 arrived[4];  // barriers: of either mail, the note, and shares
  };

  Shared& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int cta = static_cast<int>(blockIdx.x);
  uint32_t posts = 0, notes = 0, shares = 0;  // so far

  // Before anything else, by all threads of all CTAs.
  __device__ void start() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) {
      if (threadIdx.x == 0) {
        for (u64& barrier : shared.arrived) mbarrier_init(shared_address(&barrier), 1);
        fence_barrier_init();
      }
      asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    }
#endif
  }

  // The first warp of every CTA posts a pair; lanes of warps that collect get the pair of the CTA of their number.
  // Either the first warps collect or all.
  __device__ void post(Pair mine) { send(&shared.mail[posts % 2][cta], mine, posts % 2); }
  template <bool kAllWarps>
  __device__ Pair collect(Pair none) {
    const uint32_t buffer = posts % 2;
    receive<kAllWarps>(buffer, posts++ / 2, sizeof(shared.mail[0]));
    return lane < kCtas ? shared.mail[buffer][lane] : none;
  }
  // The first warp of one CTA, after a post that all collected, tells all warps of all.
  __device__ void tell(Pair first, Pair second) {
    send(&shared.note[0], first, 2);
    send(&shared.note[1], second, 2);
  }
  __device__ const Pair* told() {
    receive<true>(2, notes++, sizeof(shared.note));
    return shared.note;
  }
  // Every CTA has `from`, kCtas shares of kShare words, written by its threads, which all call this. In the first warp
  // `to` becomes the shares of all CTAs for this one, one after the other; a team of one has `from`. After the next
  // post that all collected, `from` may be written again.
  template <int kShare>
  __device__ const uint32_t* gather_share(const uint32_t* from, uint32_t* to) {
    __syncthreads();
    if constexpr (kCtas == 1) return from;
#if __CUDA_ARCH__ >= 900
    for (int i = 4 * static_cast<int>(threadIdx.x); i < kCtas * kShare; i += 4 * kThreads) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i);
      const int other = i / kShare;
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                       address_in(other, to + cta * kShare + i % kShare)),
                   "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(address_in(other, &shared.arrived[3]))
                   : "memory");
    }
#endif
    if (warp == 0) receive<false>(3, shares++, kCtas * kShare * 4);
    return to;
  }

 private:
  // Address of `p` of this CTA's memory in that of another.
  static __device__ uint32_t address_in(int other, const void* p) {
    uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(other));
#endif
    return address;
  }
  __device__ void send(Pair* to, Pair pair, int barrier) {
    if constexpr (kCtas == 1) {
      if (lane == 0) *to = pair;
    } else if (lane < kCtas) {
#if __CUDA_ARCH__ >= 900
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [%0], {%1, %2}, [%3];" ::"r"(
                       address_in(lane, to)),
                   "l"(pair.a), "l"(pair.b), "r"(address_in(lane, &shared.arrived[barrier]))
                   : "memory");
#endif
    }
  }
  template <bool kAllWarps>
  __device__ void receive(int barrier, uint32_t phase, uint32_t bytes) {
    if constexpr (kCtas == 1) {
      kAllWarps ? __syncthreads() : __syncwarp();
    } else {
#if __CUDA_ARCH__ >= 900
      const uint32_t arrived = shared_address(&shared.arrived[barrier]);
      if (threadIdx.x == 0) mbarrier_expect(arrived, bytes);
      mbarrier_wait(arrived, phase % 2);
      __syncwarp();
#endif
    }
  }
};

}  // namespace saccade::cuda
