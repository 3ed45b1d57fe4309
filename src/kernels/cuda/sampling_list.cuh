// Keys that travel between the CTAs of a team where they are few.
#pragma once

#include "kernels/cuda/sampling_values.cuh"

namespace saccade::cuda {

template <int kCtas>
struct List {
  using T = Team<kCtas>;
  static constexpr int kEach = 128;  // of a CTA
  struct alignas(16) Entry {
    uint32_t key;
    int id;
    u64 value;
  };
  Entry entries[kCtas][kEach];  // in the order of ids
  u64 counts[kCtas];
  uint32_t of_warps[T::kWarps];

  // Every CTA sends its keys in [low, high] with their measures to the first CTA, or to all. How many they are: in
  // lanes, of each CTA; one that has more than `most` sends none. By all threads, that have met since the last gather
  // was read, as they do in a round of a search.
  template <class Measure>
  __device__ int gather(T& team, Keys keys, uint32_t low, uint32_t high, int most, bool to_all, Measure measure) {
    u64 chosen = 0;  // of the lane's keys
#pragma unroll 1
    for (int i = 0; i < keys.share; i += 4) {
      const uint4 k = *reinterpret_cast<const uint4*>(keys.at + i);
      const auto in = [&](uint32_t key) -> uint32_t { return key >= low && key <= high; };
      chosen |= u64{in(k.x) | in(k.y) << 1 | in(k.z) << 2 | in(k.w) << 3} << i;
    }
    const int count = __popcll(chosen);
    int before = 0;  // of the lanes before, then of the CTA
#pragma unroll 1
    for (int bit = 0; __any_sync(kAll, count >> bit != 0); ++bit)
      before += __popc(__ballot_sync(kAll, count >> bit & 1) & ((1u << team.lane) - 1)) << bit;
    if (team.lane == 31) of_warps[team.warp] = static_cast<uint32_t>(before + count);
    __syncthreads();
    const uint32_t of_warp = team.lane < T::kWarps ? of_warps[team.lane] : 0, all = __reduce_add_sync(kAll, of_warp);
    before += static_cast<int>(__reduce_add_sync(kAll, team.lane < team.warp ? of_warp : 0));
    const bool fits = all <= static_cast<uint32_t>(most);
    if (team.warp == 0 && team.lane < kCtas) {
      const bool gets = fits && (to_all || team.lane == 0);
      team.announce(team.lane, T::kList, sizeof(counts[0]) + (gets ? all * sizeof(Entry) : 0));
      team.put(team.lane, &counts[team.cta], u64{all}, T::kList);
    }
#pragma unroll 1
    for (; fits && chosen != 0; chosen &= chosen - 1) {
      const int i = __ffsll(static_cast<long long>(chosen)) - 1;
      const uint32_t key[] = {keys.at[i]};
      u64 value[1];
      measure(key, value);
#pragma unroll 1
      for (int to = 0; to < (to_all ? kCtas : 1); ++to)
        team.put(to, &entries[team.cta][before], Entry{key[0], keys.begin + i, value[0]}, T::kList);
      ++before;
    }
    __syncwarp();
    team.wait(T::kList, team.lists++);
    return team.lane < kCtas ? static_cast<int>(counts[team.lane]) : 0;
  }
};

}  // namespace saccade::cuda
