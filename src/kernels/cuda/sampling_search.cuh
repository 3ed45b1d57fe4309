// Searches in the keys of a row that a team shares: for a key, by a histogram over a range of keys, or several over
// ranges that shrink, until the range has one key (mostly so for logits that were rounded to bf16) or so few that each
// is compared with all; and for an id.
#pragma once

#include <algorithm>

#include "kernels/cuda/sampling_list.cuh"

namespace saccade::cuda {

// The measure of bins in halves; low and high halves of the bins that a CTA adds up together. What all CTAs have for
// this one arrives in `shares`, with the sums of their shares; in two buffers, since a CTA may be told where the border
// is and go on while another still reads.
template <int kCtas>
struct Histogram {
  static constexpr int kShare = kBins / kCtas;
  alignas(16) uint32_t halves[2 * kBins];
  alignas(16) uint32_t shares[kCtas == 1 ? 1 : 2][kCtas == 1 ? 4 : 2 * kBins];
  typename Team<kCtas>::Pair sums[2][kCtas];  // of what a CTA has in the shares before this one, and in all
  u64 of_shares[kCtas];

  __device__ void clear() {
    for (unsigned i = threadIdx.x; i < 2 * kBins; i += blockDim.x) halves[i] = 0;
  }
  // `address`: of the halves.
  static __device__ void add(uint32_t address, uint32_t bin, u64 value) {
    address += 4 * (bin + bin / kShare * kShare);
    const auto low_half = static_cast<uint32_t>(value);
    const uint32_t carry = shared_add(address, low_half) + low_half < low_half;
    const uint32_t high_half = static_cast<uint32_t>(value >> 32) + carry;
    if (high_half != 0) shared_add(address + 4 * kShare, high_half);
  }
  // Sends a complete histogram, which becomes empty, and lets the first warp wait for what comes.
  __device__ void exchange(Team<kCtas>& team) {
    const int buffer = static_cast<int>(team.shares % 2), barrier = Team<kCtas>::kShares + buffer;
    if (threadIdx.x == 0) team.expect(barrier, sizeof(shares[0]) + sizeof(sums[0]));
#pragma unroll 1
    for (int to = team.warp; to < kCtas; to += Team<kCtas>::kWarps) {
      u64 sum = 0;
      for (int i = 4 * team.lane; i < 2 * kShare; i += 128) {
        uint4& from = *reinterpret_cast<uint4*>(halves + 2 * to * kShare + i);
        const uint4 v = from;
        from = {};
        team.put(to, reinterpret_cast<uint4*>(shares[buffer] + 2 * team.cta * kShare + i), v, barrier);
        const u64 four = u64{v.x} + v.y + v.z + v.w;
        sum += i < kShare ? four : four << 32;
      }
      sum = warp_sum(sum);
      if (team.lane == 0) of_shares[to] = sum;
    }
    __syncthreads();
    if (team.warp == 0) {
      u64 before = 0, all = 0;
      for (int c = 0; c < kCtas; ++c) {
        const u64 sum = of_shares[c];
        before += c < team.lane ? sum : 0;
        all += sum;
      }
      if (team.lane < kCtas) team.put(team.lane, &sums[buffer][team.cta], {before, all}, barrier);
      team.wait(barrier, team.shares / 2);
    }
    ++team.shares;
  }
};

template <int kCtas>
struct Border {
  uint32_t key;
  u64 rest;                              // target less the measure of larger keys
  typename List<kCtas>::Gathered found;  // the range that has the key
};

// The border among the keys of a gathered range, each of which is compared with all by the CTA that has it; its lowest
// by the first. `rest`: the target less the measure of keys above the range.
template <int kCtas>
__device__ Border<kCtas> rank(Team<kCtas>& team, const List<kCtas>& list, const typename List<kCtas>::Gathered& found,
                              u64 rest) {
  const uint32_t listed = found.ctas.listed;
  const int own = static_cast<int>(__shfl_sync(kAll, listed, team.cta)), cta = team.lane % kCtas;
  const auto others = static_cast<int>(__shfl_sync(kAll, listed, cta));
#pragma unroll 1
  for (int i = team.warp; i < own + (team.cta == 0); i += Team<kCtas>::kWarps) {
    const auto& mine = list.entries[team.cta][i];
    const uint32_t key = i < own ? mine.key : found.low;
    const int equals = cta < team.cta ? others : cta == team.cta ? i : 0;  // as many, if equal, rank before
    u64 above = 0;
    uint32_t equal = 0;
    for (int j = team.lane / kCtas; j < others; j += 32 / kCtas) {
      const auto other = list.entries[cta][j];
      const bool ties = other.key == key && j < equals;
      above += other.key > key || ties ? other.value : 0;
      equal += ties;
    }
    above = warp_sum(above);
    equal = __reduce_add_sync(kAll, equal);
    if (above <= rest && (i == own || rest - above < mine.value))
      team.tell({i == own ? rest - above : rest - above + equal * mine.value, key});
  }
  const auto note = team.told();
  return {static_cast<uint32_t>(note.b), note.a, found};
}

// The largest key with which the measure of it and of larger ones exceeds target_of(measure of all); it lies in
// [low, high], and no key is above `high`. All of them: the keys that are not below `least`. The histogram is empty.
// measure(i, keys, values) of four keys from place i on, or measure_one(key);
// above(i, keys, high) as gather() wants it.
template <int kCtas, class Measure, class MeasureOne, class Above, class TargetOf>
__device__ Border<kCtas> search(Team<kCtas>& team, Histogram<kCtas>& histogram, List<kCtas>& list, Keys keys,
                                uint32_t least, uint32_t low, uint32_t high, Measure measure, MeasureOne measure_one,
                                Above above, TargetOf target_of) {
  using Pair = typename Team<kCtas>::Pair;
  constexpr int kShare = Histogram<kCtas>::kShare, kPerLane = kShare / 32;
  u64 rest = 0;
#pragma unroll 1
  for (bool first = true;; first = false) {
    const Bins bins(low, high);
    if constexpr (kCtas == 1) histogram.clear();
    __syncthreads();
    uint32_t address = shared_address(histogram.halves);
    asm volatile("" : "+r"(address));  // not computed again for every key
    const uint32_t from = first ? least : low;
    u64 lower = 0;
    sweep(keys, from, [&](int i, const uint32_t(&k)[4]) {
      u64 values[4];
      measure(i, k, values);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        if (k[u] - low <= high - low)
          histogram.add(address, bins.of(k[u]), values[u]);
        else
          lower += k[u] - from < low - from ? values[u] : 0;
      }
    });
    lower = warp_sum(lower);
    if (lower != 0 && team.lane == 0) histogram.add(address, kBins - 1, lower);
    __syncthreads();
    const uint32_t* shares = histogram.halves;
    [[maybe_unused]] const int buffer = static_cast<int>(team.shares % 2);
    if constexpr (kCtas > 1) {
      histogram.exchange(team);
      shares = histogram.shares[buffer];
    }

    if (team.warp == 0) {
      struct alignas(4 * std::min(4, kPerLane)) Halves {
        uint32_t of[kPerLane];
      };
      u64 values[kPerLane] = {}, own = 0;  // of the lane's bins
#pragma unroll 4
      for (int c = 0; c < kCtas; ++c) {
        const auto* halves = reinterpret_cast<const Halves*>(shares + 2 * c * kShare) + team.lane;
        const Halves low_half = halves[0], high_half = halves[32];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) values[j] += (u64{high_half.of[j]} << 32) + low_half.of[j];
      }
#pragma unroll
      for (const u64 value : values) own += value;
      const auto sums =
          kCtas > 1 && team.lane < kCtas ? histogram.sums[buffer][team.lane] : Pair{0, kCtas == 1 ? own : 0};
      const u64 before = warp_sum(sums.a);
      if (first) rest = target_of(warp_sum(sums.b));
      const Place lane = rest < before ? Place{32, 0} : first_beyond(own, rest - before);
      if (lane.lane < 32) {
        rest -= before + lane.before;
        int bin = 0;
        bool passed = false;
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          if (passed) continue;
          bin = j;
          passed = rest < values[j];
          if (!passed) rest -= values[j];
        }
        bin += team.cta * kShare + lane.lane * kPerLane;
        team.tell({__shfl_sync(kAll, rest, lane.lane), static_cast<u64>(__shfl_sync(kAll, bin, lane.lane))});
      }
    }
    const auto note = team.told();
    rest = note.a;
    const int bin = static_cast<int>(note.b);
    low = max(low, bins.lowest(bin));
    if (bin > 0) high = min(high, bins.lowest(bin - 1) - 1);
    const auto found = list.gather(team, keys, low, high, true, above, measure_one);
    if (!__any_sync(kAll, found.ctas.listed != 0)) return {low, rest, found};
    if (!__any_sync(kAll, found.ctas.listed > list.kEach)) return rank(team, list, found, rest);
  }
}

// What may be drawn: keys above `key`, and the first `ties` (by id) with this key, which weigh `each`. Nothing that
// weighs less than `min_weight`.
struct Kept {
  uint32_t key;
  u64 ties, each, min_weight;
};

// Adds to a value of each lane what the lane's ties weigh, of which the first `left` over lanes are kept; `left`
// becomes how many of them come after the lanes before.
__device__ __noinline__ u64 with_ties(u64 value, uint32_t tied, u64 each, u64& left) {
  uint32_t sum = tied;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t before = __shfl_up_sync(kAll, sum, step);
    if (threadIdx.x % 32 >= step) sum += before;
  }
  left -= min(left, static_cast<u64>(sum - tied));
  return value + each * min(left, static_cast<u64>(tied));
}

// Shared memory of a draw.
template <int kCtas>
struct Parts {
  using T = Team<kCtas>;
  typename T::Pair of_ctas[kCtas], of_warps[T::kWarps];  // weights of what is kept without ties; ties
  u64 weights[T::kThreads];
  uint32_t ties[T::kThreads];
};

// The first id with which the weight of what may be drawn, summed in the order of ids, exceeds target_of(all weight):
// in the first warp of the CTA that has it, -1 elsewhere. kept.key is in the range of what was found, whose tallies are
// of weights.
template <int kCtas, class TargetOf>
__device__ int draw(Team<kCtas>& team, Parts<kCtas>& parts, const List<kCtas>& list,
                    const typename List<kCtas>::Gathered& found, Keys keys, const Kept& kept, const Weights& weights,
                    TargetOf target_of) {
  using T = Team<kCtas>;
  using Pair = typename T::Pair;
  const bool lowest = kept.key == found.low;
  const auto add = [&](Pair& sum, const auto& entry) {
    sum.a += entry.key > kept.key && entry.value >= kept.min_weight ? entry.value : 0;
    sum.b += entry.key == kept.key;
  };
  Pair own{found.lane.above, lowest ? found.lane.lowest : 0};
#pragma unroll 1
  for (uint32_t i = 0; i < found.lane.listed; ++i) add(own, list.entries[team.cta][found.begin + i]);
  parts.weights[threadIdx.x] = own.a;
  parts.ties[threadIdx.x] = static_cast<uint32_t>(own.b);
  const auto in_warp = [](Pair sum) -> Pair {
    return {warp_sum(sum.a), __reduce_add_sync(kAll, static_cast<uint32_t>(sum.b))};
  };
  own = in_warp(own);
  if (team.lane == 0) parts.of_warps[team.warp] = own;
  if (team.warp < kCtas) {
    const int listed = static_cast<int>(__shfl_sync(kAll, found.ctas.listed, team.warp));
    Pair sum{};
#pragma unroll 1
    for (int i = team.lane; i < listed; i += 32) add(sum, list.entries[team.warp][i]);
    sum = in_warp(sum);
    if (team.lane == team.warp)
      parts.of_ctas[team.warp] = {sum.a + found.ctas.above, sum.b + (lowest ? found.ctas.lowest : 0)};
  }
  __syncthreads();
  if (team.warp != 0) return -1;

  const Pair of_cta = team.lane < kCtas ? parts.of_ctas[team.lane] : Pair{},
             of_warp = team.lane < T::kWarps ? parts.of_warps[team.lane] : Pair{};
  const bool cuts = kept.ties < __reduce_add_sync(kAll, static_cast<uint32_t>(of_cta.b)) && kept.each != 0;
  u64 left = cuts ? kept.ties : ~u64{0};
  const auto all_of = [&](u64 weight, u64 ties, u64& left) {
    return cuts ? with_ties(weight, static_cast<uint32_t>(ties), kept.each, left) : weight + kept.each * ties;
  };
  u64 lefts = left;
  const u64 all = all_of(of_cta.a, of_cta.b, lefts);
  u64 target = target_of(warp_sum(all));
  const Place cta = first_beyond(all, target);
  if (cta.lane != team.cta) return -1;
  left = __shfl_sync(kAll, lefts, cta.lane);
  const auto place_of = [&](u64 weight, u64 ties) {
    u64 lefts = left;
    const Place place = first_beyond(all_of(weight, ties, lefts), target);
    left = __shfl_sync(kAll, lefts, place.lane);
    target -= place.before;
    return place.lane;
  };
  target -= cta.before;
  const int warp = place_of(of_warp.a, of_warp.b), thread = warp * 32 + team.lane;
  const int lane = place_of(parts.weights[thread], parts.ties[thread]);
  const int skipped = (warp * 32 + lane - team.lane) * keys.share;  // this warp is the first one
#pragma unroll 1
  for (int i = team.lane;; i += 32) {
    const uint32_t k = i < keys.share ? keys.at[skipped + i] : 0;
    const bool tie = k == kept.key;
    const uint32_t tie_lanes = __ballot_sync(kAll, tie);
    const auto ties_before = static_cast<u64>(__popc(tie_lanes & ((1u << team.lane) - 1)));
    u64 weight = weights(k);
    if (k < kept.key || weight < kept.min_weight) weight = 0;
    if (tie) weight = ties_before < left ? kept.each : 0;
    left -= min(left, static_cast<u64>(__popc(tie_lanes)));
    const u64 sum = warp_sum(weight);
    if (target < sum) return keys.begin + skipped + __shfl_sync(kAll, i, first_beyond(weight, target).lane);
    target -= sum;
  }
}

}  // namespace saccade::cuda
