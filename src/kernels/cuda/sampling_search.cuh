// Searches in the keys of a row that a team shares: for a key, by histograms over a range of keys that shrinks to one
// key (logits that were rounded to bf16 mostly end with the first, any others with the third), and for an id.
#pragma once

#include <algorithm>

#include "kernels/cuda/sampling_values.cuh"

namespace saccade::cuda {

// The keys of a lane: `share` neighbours in memory, a multiple of four, for ids from `begin` on.
struct Keys {
  uint32_t* at;
  int share, begin;
};

// Measures the keys that pass keep(id, key), four at a time, and visits the four; others count as zero.
template <class Keep, class Measure, class Visit>
__device__ __forceinline__ void sweep(Keys keys, Keep keep, Measure measure, Visit visit) {
  for (int i = 0; i < keys.share; i += 4) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(keys.at + i);
    const uint32_t k[] = {loaded.x, loaded.y, loaded.z, loaded.w};
    bool kept[4], any = false;
#pragma unroll
    for (int u = 0; u < 4; ++u) any |= kept[u] = keep(keys.begin + i + u, k[u]);
    if (!__any_sync(kAll, any)) continue;
    u64 values[4];
    measure(k, values);
#pragma unroll
    for (int u = 0; u < 4; ++u) values[u] = kept[u] ? values[u] : 0;
    visit(k, values);
  }
}

// The measure of bins in halves, of which the top bit of the high one says that the bin holds a value that is not its
// lowest; low and high halves of the bins that a CTA adds up together.
template <int kCtas>
struct Histogram {
  static constexpr int kShare = kBins / kCtas;
  alignas(16) uint32_t halves[2 * kBins];
  alignas(16) uint32_t shares[kCtas == 1 ? 4 : 2 * kBins];

  __device__ void clear() {
    for (unsigned i = threadIdx.x; i < 2 * kBins; i += blockDim.x) halves[i] = 0;
  }
  __device__ void add(int bin, u64 value, bool loose) {
    uint32_t *low = halves + bin + bin / kShare * kShare, *high = low + kShare;
    const auto low_half = static_cast<uint32_t>(value);
    const uint32_t sum = atomicAdd(low, low_half) + low_half;
    const uint32_t high_half = static_cast<uint32_t>(value >> 32) + (sum < low_half);
    if (high_half != 0) atomicAdd(high, high_half);
    if (loose) atomicOr(high, 0x80000000u);
  }
};

struct Border {
  uint32_t key;
  u64 rest;    // target less the measure of larger keys
  u64 inside;  // measure of this key
};

// The largest key with which the measure of it and of larger ones exceeds target_of(measure of all); it lies in
// [low, high], and no key is above `high`. All of them: the keys that are not below `least`.
template <int kCtas, class Measure, class TargetOf>
__device__ Border search(Team<kCtas>& team, Histogram<kCtas>& histogram, Keys keys, uint32_t least, uint32_t low,
                         uint32_t high, Measure measure, TargetOf target_of) {
  constexpr int kShare = Histogram<kCtas>::kShare, kPerLane = kShare / 32;
  Border border{};
  for (bool first = true; first || low != high; first = false) {
    const Bins bins(low, high);
    histogram.clear();
    __syncthreads();
    u64 lower = 0;
    sweep(
        keys, [&](int, uint32_t k) { return k >= (first ? least : low) && k <= high; }, measure,
        [&](const auto& k, auto& values) {
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            const bool below = k[u] < low;
            lower += below ? values[u] : 0;
            if (!__any_sync(kAll, !below && values[u] != 0)) continue;
            if (below || values[u] == 0) continue;
            bool loose;
            const int bin = bins.of(k[u], loose);
            histogram.add(bin, values[u], loose);
          }
        });
    lower = warp_sum(lower);
    if (lower != 0 && team.lane == 0) histogram.add(kBins - 1, lower, false);
    const uint32_t* shares = team.template gather_share<2 * kShare>(histogram.halves, histogram.shares);

    if (team.warp == 0) {
      struct alignas(4 * std::min(4, kPerLane)) Halves {
        uint32_t of[kPerLane];
      };
      u64 values[kPerLane] = {}, own = 0;  // of the lane's bins
      uint32_t loose = 0;
#pragma unroll
      for (int c = 0; c < kCtas; ++c) {
        const auto* halves = reinterpret_cast<const Halves*>(shares + 2 * c * kShare) + team.lane;
        const Halves low_half = halves[0], high_half = halves[32];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          values[j] += (u64{high_half.of[j] & 0x7fffffffu} << 32) + low_half.of[j];
          loose |= high_half.of[j] >> 31 << j;
        }
      }
#pragma unroll
      for (const u64 value : values) own += value;
      team.post({warp_sum(own), 0});
      const u64 sum = team.template collect<false>({}).a;
      if (first) border.rest = target_of(warp_sum(sum));
      const Place cta = first_beyond(sum, border.rest);
      if (cta.lane == team.cta) {
        const Place lane = first_beyond(own, border.rest - cta.before);
        u64 rest = border.rest - cta.before - lane.before, inside = 0;
        int bin = 0;
        bool passed = false;
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          if (passed) continue;
          inside = values[j];
          bin = j;
          passed = rest < inside;
          if (!passed) rest -= inside;
        }
        team.tell({__shfl_sync(kAll, rest, lane.lane), __shfl_sync(kAll, inside, lane.lane)},
                  {static_cast<u64>(team.cta * kShare + lane.lane * kPerLane + __shfl_sync(kAll, bin, lane.lane)),
                   __shfl_sync(kAll, loose >> bin & 1, lane.lane)});
      }
    }
    const auto* note = team.told();
    border.rest = note[0].a;
    border.inside = note[0].b;
    const int bin = static_cast<int>(note[1].a);
    const uint32_t base = bins.lowest(bin);
    if (note[1].b != 0) {
      low = max(low, base);
      if (bin > 0) high = min(high, bins.lowest(bin - 1) - 1);
    } else {
      low = high = base;
    }
  }
  border.key = low;
  return border;
}

// The first id with which the measure of kept keys, summed in the order of ids, exceeds target_of(measure of all): in
// the first warp of the CTA that has it, -1 elsewhere.
template <int kCtas, class Keep, class Measure, class TargetOf>
__device__ int locate(Team<kCtas>& team, u64* parts, u64* sums, Keys keys, Keep keep, Measure measure,
                      TargetOf target_of) {
  using T = Team<kCtas>;
  u64 part = 0;
  sweep(keys, keep, measure, [&](const auto&, const auto& values) {
    for (const u64 value : values) part += value;
  });
  parts[threadIdx.x] = part;
  part = warp_sum(part);
  if (team.lane == 0) sums[team.warp] = part;
  __syncthreads();
  if (team.warp != 0) return -1;
  const u64 own = team.lane < T::kWarps ? sums[team.lane] : 0;
  team.post({warp_sum(own), 0});
  const u64 sum = team.template collect<false>({}).a;
  u64 target = target_of(warp_sum(sum));
  const Place cta = first_beyond(sum, target);
  if (cta.lane != team.cta) return -1;
  const Place warp = first_beyond(own, target -= cta.before);
  const Place lane = first_beyond(parts[warp.lane * 32 + team.lane], target -= warp.before);
  target -= lane.before;
  const int skipped = (warp.lane * 32 + lane.lane) * keys.share;  // this warp is the first one
  for (int i = team.lane;; i += 32) {
    const int id = keys.begin + skipped - team.lane * keys.share + i;
    const uint32_t k[] = {i < keys.share ? keys.at[skipped - team.lane * keys.share + i] : 0};
    u64 value[1];
    measure(k, value);
    if (!keep(id, k[0])) value[0] = 0;
    const u64 all = warp_sum(value[0]);
    if (target < all) return __shfl_sync(kAll, id, first_beyond(value[0], target).lane);
    target -= all;
  }
}

}  // namespace saccade::cuda
