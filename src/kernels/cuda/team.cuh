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
// what was collected or told and the next post() or tell().
template <int kCtas>
struct Team {
  static constexpr int kWarps = kCtas == 1 ? 32 : 16;
  static constexpr int kThreads = 32 * kWarps;

  struct alignas(16) Pair {
    u64 a, b;
  };
  enum Barrier { kMail, kNote = 2, kShares, kList = 5, kBarriers = 7 };  // of either buffer but for notes
  struct Shared {
    Pair mail[2][kCtas];  // of alternate posts
    Pair note;
    u64 arrived[kBarriers];
  };

  Shared& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int cta = static_cast<int>(blockIdx.x);
  uint32_t posts = 0, notes = 0, shares = 0, lists = 0;  // so far

  // Before anything else, by all threads of all CTAs.
  __device__ void start() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < kBarriers; ++i) mbarrier_init(shared_address(&shared.arrived[i]), i >= kList ? kCtas : 1);
        fence_barrier_init();
      }
      asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    }
#endif
  }

  // The first warp of every CTA posts a pair; lanes of warps that collect get the pair of the CTA of their number.
  // Either the first warps collect or all. With `words` each CTA posts kWords more, which all CTAs collect in `to`.
  __device__ void post(Pair mine) {
    const uint32_t buffer = posts % 2;
    if constexpr (kCtas == 1) {
      if (lane == 0) shared.mail[buffer][0] = mine;
    } else if (lane < kCtas) {
      put(lane, &shared.mail[buffer][cta], mine, kMail + buffer);
    }
  }
  template <int kWords>
  __device__ void post(Pair mine, const uint32_t* words, uint32_t* to) {
    post(mine);
#pragma unroll 1
    for (int i = lane; i < kCtas * kWords / 4; i += 32)
      put(i / (kWords / 4), reinterpret_cast<uint4*>(to + cta * kWords) + i % (kWords / 4),
          reinterpret_cast<const uint4*>(words)[i % (kWords / 4)], kMail + posts % 2);
  }
  template <bool kAllWarps, int kWords = 0>
  __device__ Pair collect(Pair none) {
    const uint32_t buffer = posts % 2;
    receive<kAllWarps>(kMail + buffer, posts++ / 2, sizeof(shared.mail[0]) + kCtas * kWords * 4);
    return lane < kCtas ? shared.mail[buffer][lane] : none;
  }
  // The first warp of one CTA tells all warps of all.
  __device__ void tell(Pair note) {
    if constexpr (kCtas == 1) {
      if (lane == 0) shared.note = note;
    } else if (lane < kCtas) {
      put(lane, &shared.note, note, kNote);
    }
  }
  __device__ Pair told() {
    receive<true>(kNote, notes++, sizeof(shared.note));
    return shared.note;
  }

  // Stores to where `to` is in the memory of another CTA; its barrier counts the bytes.
  template <class T>
  __device__ void put(int other, T* to, T value, int barrier) {
#if __CUDA_ARCH__ >= 900
    const uint32_t address = address_in(other, to), arrived = address_in(other, &shared.arrived[barrier]);
    if constexpr (sizeof(T) == 16) {
      store_async(address, reinterpret_cast<const uint4&>(value), arrived);
    } else {
      static_assert(sizeof(T) == 8);
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(address),
                   "l"(reinterpret_cast<const u64&>(value)), "r"(arrived)
                   : "memory");
    }
#endif
  }
  // One thread says how many bytes its CTA puts, or is to get, behind a barrier.
  __device__ void announce(int other, int barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(address_in(other, &shared.arrived[barrier])),
        "r"(bytes)
        : "memory");
#endif
  }
  __device__ void expect(int barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    mbarrier_expect(shared_address(&shared.arrived[barrier]), bytes);
#endif
  }
  __device__ void wait(int barrier, uint32_t phase) {
#if __CUDA_ARCH__ >= 900
    mbarrier_wait(shared_address(&shared.arrived[barrier]), phase % 2);
    __syncwarp();
#endif
  }

 private:
  // Address of `p` of this CTA's memory in that of another.
  static __device__ uint32_t address_in(int other, const void* p) { return cluster_address(shared_address(p), other); }
  template <bool kAllWarps>
  __device__ void receive(int barrier, uint32_t phase, uint32_t bytes) {
    if constexpr (kCtas == 1) {
      kAllWarps ? __syncthreads() : __syncwarp();
    } else {
      if (threadIdx.x == 0) expect(barrier, bytes);
      wait(barrier, phase);
    }
  }
};

}  // namespace saccade::cuda
