// CTAs of a cluster that work on one thing, with exact sums: what they tell each other goes through shared memory. A
// team of one CTA needs no clusters and runs on every device.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace saccade::cuda {

using u64 = unsigned long long;

inline constexpr unsigned kAll = ~0u;

// Not inlined, as first_beyond: a kernel that runs for a few microseconds waits for its code as much as for its data.
__device__ __noinline__ u64 warp_sum(u64 v) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) v += __shfl_xor_sync(kAll, v, other);
  return v;
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

// kCtas CTAs, a cluster along x, seen from one warp of one of them. Each warp has a segment of their common work.
//
// Nothing waits for a barrier of the cluster, whose release would wait for global memory: messages are remote stores
// and copies that complete on an mbarrier of the receiver. A buffer is written again only after an exchange() that
// every warp entered when it had read it.
template <int kCtas>
struct Team {
  static constexpr int kWarps = kCtas == 8 ? 16 : 32;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSegments = kCtas * kWarps;

  struct alignas(16) Pair {
    u64 a, b;
  };
  struct Shared {
    Pair own[2][kWarps], mail[2][kCtas];  // of alternate exchanges
    Pair note[2];
    u64 arrived[4];  // barriers: of either mail, the note, and shares
  };

  Shared& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int cta = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int segment = cta * kWarps + warp;
  uint32_t exchanges = 0, notes = 0, shares = 0;  // so far

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

  // Every warp gives a pair; every lane gets what `combine` makes of those of the CTA of its number, and of its own CTA
  // those of the warp of its number; 0 where there is none.
  struct Exchanged {
    Pair cta, warp;
  };
  template <class Combine>
  __device__ Exchanged exchange(Pair mine, Combine combine) {
    const uint32_t buffer = exchanges % 2;
    if (lane == 0) shared.own[buffer][warp] = mine;
    __syncthreads();
    const Pair own = lane < kWarps ? shared.own[buffer][lane] : Pair{};
    if (warp == 0) {
      mine = shared.own[buffer][lane % kWarps];
#pragma unroll
      for (int other = kWarps / 2; other > 0; other /= 2)
        mine = combine(mine, {__shfl_xor_sync(kAll, mine.a, other), __shfl_xor_sync(kAll, mine.b, other)});
      send(&shared.mail[buffer][cta], mine, buffer);
    }
    receive(buffer, exchanges++ / 2, sizeof(shared.mail[0]));
    return {lane < kCtas ? shared.mail[buffer][lane] : Pair{}, own};
  }
  // One warp tells, all are told. Between two notes there is an exchange.
  __device__ void tell(Pair first, Pair second) {
    send(&shared.note[0], first, 2);
    send(&shared.note[1], second, 2);
  }
  __device__ const Pair* told() {
    receive(2, notes++, sizeof(shared.note));
    return shared.note;
  }
  // Every CTA has `from`, kCtas shares of kShare words, written by its threads; `to` becomes the shares of all CTAs for
  // this one, one after the other. A team of one reads `from`. Between two of these there is an exchange; after it
  // `from` may be written again.
  template <int kShare>
  __device__ const uint32_t* gather_share(const uint32_t* from, uint32_t* to) {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    if constexpr (kCtas == 1) return from;
#if __CUDA_ARCH__ >= 900
    if (warp == 0 && lane < kCtas)
      asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       address_in(lane, to + cta * kShare)),
                   "r"(shared_address(from + lane * kShare)), "n"(4 * kShare), "r"(address_in(lane, &shared.arrived[3]))
                   : "memory");
#endif
    receive(3, shares++, kCtas * kShare * 4);
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
  __device__ void receive(int barrier, uint32_t phase, uint32_t bytes) {
    if constexpr (kCtas == 1) {
      __syncthreads();
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
