// Keys that travel between the CTAs of a team where they are few.
#pragma once

#include "kernels/cuda/sampling_values.cuh"

namespace saccade::cuda {

// Visits a lane's keys by four, visit(place of the first, keys), where a warp has some that are not below `least`.
template <class Visit>
__device__ __forceinline__ void sweep(Keys keys, uint32_t least, Visit visit) {
#pragma unroll 1
  for (int i = 0; i < keys.share; i += 4) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(keys.at + i);
    const uint32_t k[] = {loaded.x, loaded.y, loaded.z, loaded.w};
    if (__any_sync(kAll, max(max(k[0], k[1]), max(k[2], k[3])) >= least)) visit(i, k);
  }
}

template <int kCtas>
struct List {
  using T = Team<kCtas>;
  static constexpr int kEach = kCtas == 1 ? 0 : 128;  // of a CTA
  struct alignas(16) Entry {
    uint32_t key;
    int id;
    u64 value;
  };
  struct alignas(16) Tally {
    u64 above;                // what the keys above a range measure
    uint32_t listed, lowest;  // keys of the range, without those that are its lowest key
  };
  struct Gathered {
    uint32_t low;      // the lowest key of the range
    uint32_t begin;    // of the lane's in entries[cta]
    Tally lane, ctas;  // of the lane's keys; in lanes, of the CTAs'
  };

  Entry entries[kCtas][kEach + 1];  // in the order of ids; the odd stride spreads CTAs over banks
  Tally of_ctas[2][kCtas];          // of alternate gathers
  Tally of_warps[T::kWarps];

  // Every CTA tells all what it has of [low, high] and above, and sends its keys in (low, high] with their measures to
  // the first CTA or to all; one that has more than kEach sends none. above(i, keys, high): what those of four keys
  // measure that are above it. By all threads; when there are entries, all CTAs have exchanged something since the last
  // were read.
  template <class Above, class Measure>
  __device__ Gathered gather(T& team, Keys keys, uint32_t low, uint32_t high, bool to_all, Above above,
                             Measure measure) {
    Tally own{};
    u64 listed = 0;
    sweep(keys, low, [&](int i, const uint32_t(&k)[4]) {
      own.above += above(i, k, high);
      // Few are in the range; in it, differences are not more than that of its ends.
      if (!__any_sync(kAll, min(min(k[0] - low, k[1] - low), min(k[2] - low, k[3] - low)) <= high - low)) return;
      uint32_t in = 0;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        in |= uint32_t{k[u] > low && k[u] <= high} << u;
        own.lowest += k[u] == low;
      }
      own.listed += static_cast<uint32_t>(__popc(in));
      if constexpr (kCtas > 1) listed |= u64{in} << i;
    });
    uint32_t before = 0;  // of the lanes before, then of the CTA
#pragma unroll 1
    for (int bit = 0; __any_sync(kAll, own.listed >> bit != 0); ++bit)
      before += static_cast<uint32_t>(__popc(__ballot_sync(kAll, own.listed >> bit & 1) & ((1u << team.lane) - 1)))
                << bit;
    const Tally of_warp{warp_sum(own.above), __reduce_add_sync(kAll, own.listed), __reduce_add_sync(kAll, own.lowest)};
    if (team.lane == 0) of_warps[team.warp] = of_warp;
    __syncthreads();
    const Tally warp = team.lane < T::kWarps ? of_warps[team.lane] : Tally{};
    const uint32_t all = __reduce_add_sync(kAll, warp.listed);
    before += __reduce_add_sync(kAll, team.lane < team.warp ? warp.listed : 0);
    const bool fits = all <= kEach;
    const uint32_t buffer = team.lists % 2, barrier = T::kList + buffer;
    if (team.warp == 0) {
      const Tally mine{warp_sum(warp.above), all, __reduce_add_sync(kAll, warp.lowest)};
      if constexpr (kCtas == 1) {
        if (team.lane == 0) of_ctas[buffer][0] = mine;
      } else if (team.lane < kCtas) {
        const bool gets = fits && team.lane != team.cta && (to_all || team.lane == 0);
        team.announce(team.lane, barrier, sizeof(Tally) + (gets ? all * sizeof(Entry) : 0));
        team.put(team.lane, &of_ctas[buffer][team.cta], mine, barrier);
      }
    }
    if constexpr (kCtas > 1) {
#pragma unroll 1
      for (uint32_t at = before; fits && listed != 0; listed &= listed - 1) {
        const int i = __ffsll(static_cast<long long>(listed)) - 1;
        entries[team.cta][at++] = {keys.at[i], keys.begin + i, measure(keys.at[i])};
      }
    }
    __syncthreads();
    if constexpr (kCtas > 1) {
#pragma unroll 1
      for (uint32_t i = threadIdx.x; fits && i < (to_all ? all * kCtas : all); i += T::kThreads) {
        const auto to = static_cast<int>(to_all ? i % kCtas : 0);
        Entry& entry = entries[team.cta][to_all ? i / kCtas : i];
        if (to != team.cta) team.put(to, &entry, entry, barrier);
      }
      __syncwarp();
      team.wait(barrier, team.lists / 2);
    }
    ++team.lists;
    return {low, before, own, team.lane < kCtas ? of_ctas[buffer][team.lane] : Tally{}};
  }
};

}  // namespace saccade::cuda
