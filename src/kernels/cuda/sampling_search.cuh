// Searches in the keys of a row that a team shares: for a key, by histograms over a range of keys that shrinks to one
// key (logits that were rounded to bf16 mostly end with the first, any others with the third), and for an id.
#pragma once

#include <algorithm>

#include "kernels/cuda/sampling_list.cuh"

namespace saccade::cuda {

// Measures the keys that pass keep(id, key), four at a time (i is the place of the first), and visits the four; others
// count as zero.
template <class Keep, class Measure, class Visit>
__device__ __forceinline__ void sweep(Keys keys, Keep keep, Measure measure, Visit visit) {
#pragma unroll 1
  for (int i = 0; i < keys.share; i += 4) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(keys.at + i);
    const uint32_t k[] = {loaded.x, loaded.y, loaded.z, loaded.w};
    bool kept[4], any = false;
#pragma unroll
    for (int u = 0; u < 4; ++u) any |= kept[u] = keep(keys.begin + i + u, k[u]);
    if (!__any_sync(kAll, any)) continue;
    u64 values[4];
    measure(i, k, values);
#pragma unroll
    for (int u = 0; u < 4; ++u) values[u] = kept[u] ? values[u] : 0;
    visit(k, values);
  }
}

// The measure of bins in halves, of which the top bit of the high one says that the bin holds a value that is not its
// lowest; low and high halves of the bins that a CTA adds up together. What all CTAs have for this one arrives in
// `shares`, with the sums of their shares; in two buffers, since a CTA may be told where the border is and go on while
// another still reads.
template <int kCtas>
struct Histogram {
  static constexpr int kShare = kBins / kCtas;
  alignas(16) uint32_t halves[2 * kBins];
  alignas(16) uint32_t shares[kCtas == 1 ? 1 : 2][kCtas == 1 ? 4 : 2 * kBins];
  alignas(16) u64 sums[kCtas == 1 ? 1 : 2][kCtas * kCtas];  // [of the CTA][in its share]

  __device__ void clear() {
    for (unsigned i = threadIdx.x; i < 2 * kBins; i += blockDim.x) halves[i] = 0;
  }
  // Together, so that the latencies of atomics overlap. What is not `in` is left out.
  template <int n>
  __device__ void add(const int (&bins)[n], const u64 (&values)[n], const bool (&loose)[n], const bool (&in)[n]) {
    uint32_t *low[n], sum[n];
#pragma unroll
    for (int u = 0; u < n; ++u) {
      low[u] = halves + bins[u] + bins[u] / kShare * kShare;
      if (in[u]) sum[u] = atomicAdd(low[u], static_cast<uint32_t>(values[u]));
    }
#pragma unroll
    for (int u = 0; u < n; ++u) {
      const auto low_half = static_cast<uint32_t>(values[u]);
      const uint32_t high_half = static_cast<uint32_t>(values[u] >> 32) + (sum[u] + low_half < low_half);
      if (in[u] && high_half != 0) atomicAdd(low[u] + kShare, high_half);
      if (in[u] && loose[u]) atomicOr(low[u] + kShare, 0x80000000u);
    }
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
        const uint32_t bits = i < kShare ? kAll : kAll >> 1;
        const u64 four = u64{v.x & bits} + (v.y & bits) + (v.z & bits) + (v.w & bits);
        sum += i < kShare ? four : four << 32;
      }
      sum = warp_sum(sum);
      if (team.lane < kCtas) team.put(team.lane, &sums[buffer][team.cta * kCtas + to], sum, barrier);
    }
    if (team.warp == 0) team.wait(barrier, team.shares / 2);
    ++team.shares;
  }
};

struct Border {
  uint32_t key;
  u64 rest;    // target less the measure of larger keys
  u64 inside;  // measure of this key
};

// Finds the border among the keys in [low, high] by comparing each with each, where they are few: every CTA gets all
// and ranks its own. border.rest is the target less the measure of keys above `high`. Whether they are few.
template <int kCtas, class Measure>
__device__ bool rank(Team<kCtas>& team, List<kCtas>& list, Keys keys, uint32_t low, uint32_t high, Measure measure,
                     Border& border) {
  constexpr int kEach = 64;
  const int count = list.gather(team, keys, low, high, kEach, true,
                                [&](const auto& key, auto& value) { measure(0, key, value, false); });
  if (__any_sync(kAll, count > kEach)) return false;
  const int own = __shfl_sync(kAll, count, team.cta);
#pragma unroll 1
  for (int i = team.warp; i < own; i += Team<kCtas>::kWarps) {
    const uint32_t key = list.entries[team.cta][i].key;
    u64 above = 0, inside = 0;
    bool first = true;
#pragma unroll 1
    for (int c = 0; c < kCtas; ++c) {
      const int others = __shfl_sync(kAll, count, c);
#pragma unroll 1
      for (int j = team.lane; j < others; j += 32) {
        const auto other = list.entries[c][j];
        above += other.key > key ? other.value : 0;
        inside += other.key == key ? other.value : 0;
        first &= other.key != key || c > team.cta || (c == team.cta && j >= i);
      }
    }
    above = warp_sum(above);
    inside = warp_sum(inside);
    first = __all_sync(kAll, first);
    if (first && above <= border.rest && border.rest < above + inside)
      team.tell({border.rest - above, inside}, {key, 0});
  }
  const auto* note = team.told();
  border = {static_cast<uint32_t>(note[1].a), note[0].a, note[0].b};
  return true;
}

// The largest key with which the measure of it and of larger ones exceeds target_of(measure of all); it lies in
// [low, high], and no key is above `high`. All of them: the keys that are not below `least`. The histogram is empty.
// measure(i, keys, values, whether all of the keys that are not below `least` are measured).
template <int kCtas, class Measure, class TargetOf>
__device__ Border search(Team<kCtas>& team, Histogram<kCtas>& histogram, List<kCtas>& list, Keys keys, uint32_t least,
                         uint32_t low, uint32_t high, Measure measure, TargetOf target_of) {
  constexpr int kShare = Histogram<kCtas>::kShare, kPerLane = kShare / 32;
  Border border{};
  for (bool first = true; first || low != high; first = false) {
    const Bins bins(low, high);
    if constexpr (kCtas == 1) histogram.clear();
    __syncthreads();
    u64 lower = 0;
    sweep(
        keys, [&](int, uint32_t k) { return k >= (first ? least : low) && k <= high; },
        [&](int i, const auto& k, auto& values) { measure(i, k, values, first); },
        [&](const auto& k, auto& values) {
          int bin[4];
          bool loose[4], in[4];
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            in[u] = k[u] >= low && values[u] != 0;
            lower += in[u] ? 0 : values[u];
            bin[u] = bins.of(in[u] ? k[u] : high, loose[u]);
          }
          histogram.add(bin, values, loose, in);
        });
    lower = warp_sum(lower);
    if (lower != 0 && team.lane == 0) histogram.add({kBins - 1}, {lower}, {false}, {true});
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
      uint32_t loose = 0;
#pragma unroll 4
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
      u64 before = 0, all = 0;  // this CTA's share
      if constexpr (kCtas == 1) {
        all = own;
      } else {
        constexpr int kSums = kCtas * kCtas / 32;
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          const u64 sum = histogram.sums[buffer][team.lane * kSums + i];
          all += sum;
          before += (team.lane * kSums + i) % kCtas < team.cta ? sum : 0;
        }
        before = warp_sum(before);
      }
      if (first) border.rest = target_of(warp_sum(all));
      const Place lane = border.rest < before ? Place{32, 0} : first_beyond(own, border.rest - before);
      if (lane.lane < 32) {
        u64 rest = border.rest - before - lane.before, inside = 0;
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
    if constexpr (kCtas > 1) {
      if (low != high && rank(team, list, keys, low, high, measure, border)) return border;
    }
  }
  border.key = low;
  return border;
}

// What may be drawn: keys above `key`, and the first `ties` (by id) with this key, which weigh `each`; where `each` is
// 0, all that have this key as well. Nothing that weighs less than `min_weight`.
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

// The first id with which the weight of what may be drawn, summed in the order of ids, exceeds target_of(all weight):
// in the first warp of the CTA that has it, -1 elsewhere. kThreads of parts and ties, kWarps of sums. `weighed`: all
// that may be drawn has been.
template <int kCtas, class TargetOf>
__device__ int draw(Team<kCtas>& team, u64* parts, uint32_t* ties, typename Team<kCtas>::Pair* sums, Keys keys,
                    const Kept& kept, const Weights& weights, bool weighed, TargetOf target_of) {
  using T = Team<kCtas>;
  const bool cuts = kept.each != 0;
  u64 part = 0;
  uint32_t tied = 0;
  sweep(
      keys, [&](int, uint32_t k) { return k >= kept.key; },
      [&](int i, const auto& k, auto& values) { weights(i, k, values, weighed); },
      [&](const auto& k, const auto& values) {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const bool tie = cuts && k[u] == kept.key;
          part += tie || values[u] < kept.min_weight ? 0 : values[u];
          tied += tie;
        }
      });
  parts[threadIdx.x] = part;
  ties[threadIdx.x] = tied;
  part = warp_sum(part);
  tied = __reduce_add_sync(kAll, tied);
  if (team.lane == 0) sums[team.warp] = {part, tied};
  __syncthreads();
  if (team.warp != 0) return -1;
  u64 left = kept.ties;
  const auto place_of = [&](u64 value, u64 tied, u64 target) {
    u64 lefts = left;
    if (cuts) value = with_ties(value, static_cast<uint32_t>(tied), kept.each, lefts);
    const Place place = first_beyond(value, target);
    left = __shfl_sync(kAll, lefts, place.lane);
    return place;
  };
  const auto own = team.lane < T::kWarps ? sums[team.lane] : typename T::Pair{0, 0};
  team.post({warp_sum(own.a), __reduce_add_sync(kAll, static_cast<uint32_t>(own.b))});
  const auto sum = team.template collect<false>({0, 0});
  u64 all = sum.a, lefts = left;
  if (cuts) all = with_ties(all, static_cast<uint32_t>(sum.b), kept.each, lefts);
  u64 target = target_of(warp_sum(all));
  const Place cta = first_beyond(all, target);
  if (cta.lane != team.cta) return -1;
  left = __shfl_sync(kAll, lefts, cta.lane);
  const Place warp = place_of(own.a, own.b, target -= cta.before);
  const int thread = warp.lane * 32 + team.lane;
  const Place lane = place_of(parts[thread], ties[thread], target -= warp.before);
  target -= lane.before;
  const int skipped = (warp.lane * 32 + lane.lane) * keys.share;  // this warp is the first one
#pragma unroll 1
  for (int i = team.lane;; i += 32) {
    const int id = keys.begin + skipped - team.lane * keys.share + i;
    const uint32_t k[] = {i < keys.share ? keys.at[skipped - team.lane * keys.share + i] : 0};
    u64 value[1];
    weights.weigh(k, value);
    const bool tie = cuts && k[0] == kept.key;
    const uint32_t tie_lanes = __ballot_sync(kAll, tie);
    const auto ties_before = static_cast<u64>(__popc(tie_lanes & ((1u << team.lane) - 1)));
    if (k[0] < kept.key || value[0] < kept.min_weight || (tie && ties_before >= left)) value[0] = 0;
    left -= min(left, static_cast<u64>(__popc(tie_lanes)));
    const u64 weight = warp_sum(value[0]);
    if (target < weight) return __shfl_sync(kAll, id, first_beyond(value[0], target).lane);
    target -= weight;
  }
}

}  // namespace saccade::cuda
