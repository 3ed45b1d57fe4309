// The next token of each row of logits, without sorting.
//
// A row is shared by a team: kCtas CTAs of a cluster that write into each other's shared memory, or one CTA where there
// are no clusters. Every warp owns a segment of neighbouring ids; the CTA keeps its part of the row, as ordered keys,
// in shared memory (in a team of one it reads the row again from L2). Two searches are all there is:
//   search()  the key at which the measure (count or mass) of larger keys reaches a limit: histograms over a range of
//             keys that shrinks to one key. Logits that were rounded to bf16 end with the first histogram, any others
//             with the third at the latest.
//   locate()  the id at which the measure, in the order of ids, passes a target: which of tied tokens is the last, and
//             the draw.
// Weights are fixed-point numbers from exp in double: sums are exact, so that no partition or order changes a result,
// and borders lie within 2^-44 of those of sums in double.
//
// Bytes: the row once (0.6 MB, 0.13 us at 4.65 TB/s); the time is that of latencies: about 0.3 us a barrier.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_values.cuh"

namespace saccade::cuda {
namespace {

constexpr int64_t kMaxVocab = 1 << 18;  // the sum of that many weights leaves the top bit free

// Weighs the keys at start, start + step, ... < stop that pass keep(id, key), four at a time, and visits them; others
// count as zero.
template <class Key, class Keep, class Measure, class Visit>
__device__ __forceinline__ void sweep(int start, int step, int stop, Key key, Keep keep, Measure measure, Visit visit) {
  constexpr int kAtOnce = 4;
  for (int id = start; __any_sync(kAll, id < stop); id += kAtOnce * step) {
    uint32_t keys[kAtOnce];
    bool kept[kAtOnce], any = false;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = id + u * step;
      keys[u] = at < stop ? key(at) : 0;
      kept[u] = at < stop && keep(at, keys[u]);
      any |= kept[u];
    }
    if (!__any_sync(kAll, any)) continue;
    u64 values[kAtOnce];
    measure(keys, values);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) visit(keys[u], kept[u] ? values[u] : 0);
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

struct Add {
  template <class Pair>
  __device__ Pair operator()(Pair x, Pair y) const {
    return {x.a + y.a, x.b + y.b};
  }
};

struct Border {
  uint32_t key;
  u64 rest;    // target less the measure of larger keys
  u64 inside;  // measure of this key
};

// The largest key with which the measure of it and of larger ones exceeds target_of(measure of all); it lies in
// [low, high], and no key is above `high`. All of them: the keys of [begin, end), the warp's segment, that are not
// below `least`. The histogram is zero before and after.
template <int kCtas, class Key, class Measure, class TargetOf>
__device__ Border search(Team<kCtas>& team, Histogram<kCtas>& histogram, int begin, int end, Key key, uint32_t least,
                         uint32_t low, uint32_t high, Measure measure, TargetOf target_of) {
  using T = Team<kCtas>;
  constexpr int kOwn = kBins / T::kSegments;  // bins that a warp adds up over the CTAs
  static_assert(kOwn <= 32);
  Border border{};
  for (bool first = true; first || low != high; first = false) {
    const Bins bins(low, high);
    __syncthreads();  // the histogram is clear
    u64 all = 0;
    const auto keep = [&](int, uint32_t k) { return k >= (first ? least : low) && k <= high; };
    sweep(begin + team.lane, 32, end, key, keep, measure, [&](uint32_t k, u64 value) {
      all += value;
      if (k < low || value == 0) return;
      bool loose;
      const int bin = bins.of(k, loose);
      histogram.add(bin, value, loose);
    });
    constexpr int kShare = Histogram<kCtas>::kShare;
    const uint32_t* shares = team.template gather_share<2 * kShare>(histogram.halves, histogram.shares);

    u64 value = 0;  // of the lane's bin
    uint32_t loose = 0;
    for (int c = team.lane / kOwn; c < kCtas; c += 32 / kOwn) {
      const uint32_t* low_half = shares + 2 * c * kShare + team.warp * kOwn + team.lane % kOwn;
      value += (u64{low_half[kShare] & 0x7fffffffu} << 32) + *low_half;
      loose |= low_half[kShare] >> 31;
    }
#pragma unroll
    for (int other = kOwn; other < 32; other *= 2) {
      value += __shfl_xor_sync(kAll, value, other);
      loose |= __shfl_xor_sync(kAll, loose, other);
    }
    if (team.lane >= kOwn) value = 0;
    const auto sums = team.exchange({warp_sum(value), warp_sum(all)}, Add{});

    if (first) border.rest = target_of(warp_sum(sums.cta.b));
    const Place cta = first_beyond(sums.cta.a, border.rest);
    if (cta.lane == team.cta) {
      const Place warp = first_beyond(sums.warp.a, border.rest - cta.before);
      if (warp.lane == team.warp) {
        const Place bin = first_beyond(value, border.rest - cta.before - warp.before);
        team.tell({cta.before + warp.before + bin.before, __shfl_sync(kAll, value, bin.lane)},
                  {static_cast<u64>(team.segment * kOwn + bin.lane), __shfl_sync(kAll, loose, bin.lane)});
      }
    }
    histogram.clear();
    const auto* note = team.told();
    border.rest -= note[0].a;
    border.inside = note[0].b;
    const int bin = static_cast<int>(note[1].a);
    const uint32_t base = bins.lowest(bin);
    if (note[1].b != 0) {
      low = std::max(low, base);
      if (bin > 0) high = std::min(high, bins.lowest(bin - 1) - 1);
    } else {
      low = high = base;
    }
  }
  border.key = low;
  return border;
}

// The first id with which the measure of kept keys, summed in the order of ids, exceeds target_of(measure of all): in
// the warp that owns it, -1 in others.
template <int kCtas, class Key, class Keep, class Measure, class TargetOf>
__device__ int locate(Team<kCtas>& team, int begin, int end, Key key, Keep keep, Measure measure, TargetOf target_of) {
  using T = Team<kCtas>;
  const auto sum_of = [&](int start, int step, int stop) {
    u64 sum = 0;
    sweep(start, step, stop, key, keep, measure, [&](uint32_t, u64 value) { sum += value; });
    return sum;
  };
  // In shared memory, lanes read neighbouring ids from the start; an odd number of them has no bank conflicts.
  int share = (end - begin + 31) / 32 | 1;
  const auto sum_part = [&] {
    const int from = begin + team.lane * share;
    return sum_of(from, 1, min(from + share, end));
  };
  u64 part = kCtas > 1 ? sum_part() : sum_of(begin + team.lane, 32, end);
  const auto sums = team.exchange({warp_sum(part), 0}, Add{});
  u64 target = target_of(warp_sum(sums.cta.a));
  const Place cta = first_beyond(sums.cta.a, target);
  if (cta.lane != team.cta) return -1;
  const Place warp = first_beyond(sums.warp.a, target - cta.before);
  if (warp.lane != team.warp) return -1;
  target -= cta.before + warp.before;
  if constexpr (kCtas == 1) part = sum_part();
  while (true) {
    const Place place = first_beyond(part, target);
    target -= place.before;
    begin += place.lane * share;
    end = min(begin + share, end);
    if (share == 1) return begin;
    share = (share + 31) / 32;
    part = sum_part();
  }
}

__device__ __noinline__ float penalise(float x, float penalty) { return x < 0 ? x * penalty : x / penalty; }

// Grid (kCtas, R), clusters of (kCtas, 1). Dynamic shared memory: the keys of a CTA's segments, for teams that draw.
template <int kCtas, bool kDraws>
__global__ void __launch_bounds__(Team<kCtas>::kThreads, kCtas == 8 ? 2 : 1)
    sample_kernel(const float* logits, int vocab, const SampleRow* rows, uint32_t* seen, int32_t* ids) {
  using T = Team<kCtas>;
  constexpr bool kStaged = kDraws && kCtas > 1;
  extern __shared__ uint32_t staged[];
  __shared__ typename T::Shared shared;
  __shared__ Histogram<kCtas> histogram;
  T team{shared};
  pdl_launch();
  if constexpr (kDraws) histogram.clear();
  team.start();
  pdl_wait();

  const SampleRow row = rows[blockIdx.y];
  logits += int64_t{blockIdx.y} * vocab;
  uint32_t* const seen_bits = row.seen_row < 0 ? nullptr : seen + int64_t{row.seen_row} * ((vocab + 31) / 32);
  const float penalty = seen_bits == nullptr ? 1 : row.repetition_penalty;
  const int length = (vocab + T::kSegments - 1) / T::kSegments;
  const int begin = min(team.segment * length, vocab), end = min(begin + length, vocab);
  const int first = team.cta * T::kWarps * length;  // of this CTA

  const auto penalised = [&](float x, uint32_t word, int id) {
    return (word >> id % 32 & 1) == 0 ? x : penalise(x, penalty);
  };
  const auto key = [&](int id) {
    if constexpr (kStaged) return staged[id - first];
    return key_of(penalised(logits[id], penalty == 1 ? 0 : seen_bits[id / 32], id));
  };

  u64 random = 0;
  if constexpr (kDraws) random = philox(row.seed, row.position);  // while logits come
  uint32_t most = 0, best = kAll;
  constexpr int kAtOnce = 8;
  for (int id = begin + team.lane; id < end; id += 32 * kAtOnce) {
    float x[kAtOnce];
    uint32_t words[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = min(id + 32 * u, end - 1);
      x[u] = logits[at];
      words[u] = penalty == 1 ? 0 : seen_bits[at / 32];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = min(id + 32 * u, end - 1);
      const uint32_t k = key_of(penalised(x[u], words[u], at));
      if constexpr (kStaged) staged[at - first] = k;
      if (id + 32 * u < end && k > most) {
        most = k;
        best = static_cast<uint32_t>(at);
      }
    }
  }
  if constexpr (kStaged) __syncwarp();
  const uint32_t warp_most = __reduce_max_sync(kAll, most);
  best = __reduce_min_sync(kAll, most == warp_most ? best : kAll);
  // The largest key with its id, and the least of the warps' and of the lanes' largest keys.
  using Pair = typename T::Pair;
  const auto outermost = [](Pair x, Pair y) -> Pair {
    const u64 warps = min(x.b >> 32, y.b >> 32), lanes = min(static_cast<uint32_t>(x.b), static_cast<uint32_t>(y.b));
    return {max(x.a, y.a), warps << 32 | lanes};
  };
  Pair ends =
      team.exchange({u64{warp_most} << 32 | ~best, u64{warp_most} << 32 | __reduce_min_sync(kAll, most)}, outermost)
          .cta;
  if (team.lane >= kCtas) ends.b = ~u64{0};
#pragma unroll
  for (int other = 16; other > 0; other /= 2)
    ends = outermost(ends, {__shfl_xor_sync(kAll, ends.a, other), __shfl_xor_sync(kAll, ends.b, other)});
  const auto top_key = static_cast<uint32_t>(ends.a >> 32), top_id = ~static_cast<uint32_t>(ends.a);
  const auto finish = [&](int id) {
    if (team.lane != 0) return;
    ids[blockIdx.y] = id;
    if (seen_bits != nullptr && id >= 0) seen_bits[id / 32] |= 1u << id % 32;
  };
  const bool bad = top_key >= kInfinityKey || top_key <= kMinusInfinityKey;
  if (!kDraws || bad || row.temperature == 0) {
    if (team.segment == 0) finish(bad ? -1 : static_cast<int>(top_id));
    return;
  }

  if constexpr (kDraws) {
    const Weigh weigh{value_of(top_key), 1.4426950408889634 / static_cast<double>(row.temperature)};
    uint32_t last_key = 0;  // kept: larger keys, and this one up to last_id
    int last_id = vocab;
    u64 ties = 0;       // how many with last_key are kept besides the first,
    bool cuts = false;  // where that is not all
#pragma unroll 1
    for (const bool by_mass : {false, true}) {
      if (by_mass ? row.top_p >= 1 : row.top_k <= 0 || row.top_k >= vocab) continue;
      const double top_p = row.top_p;
      uint32_t low = kMinusInfinityKey;
      if (by_mass) {
        // What is lighter than (1 - top_p) / 2V is not reached, see engine/sampler.cpp; half of that for logf's sake.
        const float negligible = logf((1 - row.top_p) / (4.0f * static_cast<float>(vocab))) * row.temperature;
        low = max(last_key, key_of(value_of(top_key) + negligible));
      } else if (row.top_k <= T::kSegments) {
        // Every segment, and below every lane, has a key that is not below the least of their largest.
        low = max(low, static_cast<uint32_t>(ends.b >> 32));
      } else if (row.top_k <= 32 * T::kSegments) {
        low = max(low, static_cast<uint32_t>(ends.b));
      }
      const Border border = search(
          team, histogram, begin, end, key, by_mass ? last_key : low, low, top_key,
          [&](const auto& keys, auto& values) {
            if (by_mass) {
              weigh(keys, values);
            } else {
              for (u64& value : values) value = 1;
            }
          },
          [&](u64 total) {
            const u64 limit = by_mass ? static_cast<u64>(ceil(top_p * static_cast<double>(total))) : row.top_k;
            return max(limit, u64{1}) - 1;
          });
      last_key = border.key;
      const uint32_t border_key[] = {border.key};
      u64 weight[1];
      weigh(border_key, weight);
      cuts = by_mass && border.rest + weight[0] < border.inside;
      if (cuts) ties = border.rest / weight[0];
    }
    const auto min_weight = static_cast<u64>(rint(static_cast<double>(row.min_p) * kOne));
#pragma unroll 1
    for (;; cuts = false) {
      const int id = locate(
          team, begin, end, key,
          [&](int id, uint32_t k) { return k == last_key ? id <= last_id : k > last_key && !cuts; },
          [&](const auto& keys, auto& values) {
            if (!cuts) weigh(keys, values);
            for (u64& value : values) value = cuts ? 1 : value >= min_weight ? value : 0;
          },
          [&](u64 total) { return cuts ? ties : __umul64hi(random << 11, total); });  // floor(uniform * total)
      if (!cuts) {
        if (id >= 0) finish(id);
        return;
      }
      if (id >= 0) team.tell({static_cast<u64>(id), 0}, {0, 0});
      last_id = static_cast<int>(team.told()[0].a);
    }
  }
}

template <int kCtas, bool kDraws>
void launch(Stream stream, const Tensor& logits, const SampleRow* rows, const Tensor& seen, const Tensor& ids) {
  using T = Team<kCtas>;
  const int64_t vocab = logits.dim(1);
  const auto kernel = sample_kernel<kCtas, kDraws>;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCtas, static_cast<unsigned>(logits.dim(0)));
  config.blockDim = dim3(T::kThreads);
  config.stream = stream;
  if (kDraws && kCtas > 1) {
    config.dynamicSmemBytes = static_cast<size_t>((vocab + T::kSegments - 1) / T::kSegments * T::kWarps) * 4;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(config.dynamicSmemBytes)),
          "sample");
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kCtas;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = kCtas > 1 ? 2 : 1;
  if (kCtas > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "sample");
  check(cudaLaunchKernelEx(&config, kernel, static_cast<const float*>(logits.as<float>()), static_cast<int>(vocab),
                           rows, seen ? reinterpret_cast<uint32_t*>(seen.data) : nullptr, ids.as<int32_t>()),
        "sample");
}

}  // namespace

size_t sample_workspace_bytes(int64_t, int64_t) { return 0; }

void sample(Stream stream, const Tensor& logits, const SampleRow* rows, const Tensor& seen, bool all_greedy,
            const Tensor&, const Tensor& ids) {
  CHECK(logits.rank == 2 && ids.dim(0) == logits.dim(0) && logits.dim(1) <= kMaxVocab, "sample: {}", logits.describe());
  if (logits.dim(0) == 0) return;
  const auto run = [&]<int kCtas>(std::integral_constant<int, kCtas>) {
    all_greedy ? launch<kCtas, false>(stream, logits, rows, seen, ids)
               : launch<kCtas, true>(stream, logits, rows, seen, ids);
  };
  const char* asked = getenv("SAMPLE_CTAS");
  const int ctas = asked ? atoi(asked) : !use_hopper() ? 1 : logits.dim(0) <= 4 ? 16 : 8;
  if (ctas == 16) run(std::integral_constant<int, 16>{});
  if (ctas == 8) run(std::integral_constant<int, 8>{});
  if (ctas == 1) run(std::integral_constant<int, 1>{});
}

}  // namespace saccade::cuda
