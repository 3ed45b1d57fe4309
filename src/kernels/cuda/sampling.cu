// The next token of each row of logits, without sorting.
//
// A row is shared by a team: kCtas CTAs of a cluster that write into each other's shared memory, or one CTA where there
// are no clusters. Every lane owns neighbouring ids and keeps them, as ordered keys, in shared memory (a team of one in
// a workspace). Where top-k leaves few tokens, one CTA gets them and does the rest (sampling_few.cuh). Otherwise
// search() finds the last key that is kept, by count and then by mass, and draw() the id at which a running sum passes
// a target. Weights are fixed-point numbers from powers of two in double: sums are exact, so that no partition or order
// changes a result, and borders lie within 2^-44 of those of sums in double.
//
// Bytes: the row once (0.6 MB, 0.13 us at 4.65 TB/s). The time is that of latencies: of messages between CTAs (0.3 us),
// of weights and histograms of all keys (2 and 5 us for 152k of them over 16 CTAs), of instructions that run once.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_few.cuh"
#include "kernels/cuda/sampling_search.cuh"

namespace saccade::cuda {
namespace {

constexpr size_t kMostShared = 224 << 10;  // of a CTA, without what is not dynamic
constexpr int64_t kMaxVocab = 1 << 18;     // the sum of that many weights leaves the top bit free

__device__ __noinline__ float penalise(float x, float penalty) { return x < 0 ? x * penalty : x / penalty; }

// Of a: the largest upper half, and among those the largest lower half. Of b: the least of either half.
template <class Pair>
__device__ __forceinline__ Pair outermost(Pair v) {
  const auto high = static_cast<uint32_t>(v.a >> 32), most = __reduce_max_sync(kAll, high);
  return {u64{most} << 32 | __reduce_max_sync(kAll, high == most ? static_cast<uint32_t>(v.a) : 0),
          u64{__reduce_min_sync(kAll, static_cast<uint32_t>(v.b >> 32))} << 32 |
              __reduce_min_sync(kAll, static_cast<uint32_t>(v.b))};
}

// Shared memory of the searches.
template <int kCtas>
struct Scratch {
  Histogram<kCtas> histogram;
  List<kCtas> list;
  Few<kCtas> few;
  Parts<kCtas> parts;
  alignas(16) uint32_t warp_tops[Team<kCtas>::kWarps];
};

// Grid (kCtas, R), clusters of (kCtas, 1). The keys of a CTA are in dynamic shared memory, those of a team of one in
// `workspace`; a lane has `share` of them. Their weights are kept behind them where there is room.
template <int kCtas, bool kDraws>
__global__ void __launch_bounds__(Team<kCtas>::kThreads, kCtas == 8 && !kDraws ? 2 : 1)
    sample_kernel(const float* logits, int vocab, int share, bool keeps_weights, const SampleRow* rows, uint32_t* seen,
                  uint32_t* workspace, int32_t* ids, int32_t* ids_for_host) {
  using T = Team<kCtas>;
  using Pair = typename T::Pair;
  extern __shared__ uint4 staged[];
  __shared__ typename T::Shared shared;
  __shared__ Pair tops[T::kWarps];
  constexpr bool kFew = kDraws && kCtas > 1;  // whether that way is built
  constexpr int kTops = kFew ? T::kWarps : 0;
  [[maybe_unused]] auto& scratch = *reinterpret_cast<Scratch<kCtas>*>(staged);
  T team{shared};
  pdl_launch();
  if constexpr (kFew) scratch.histogram.clear();
  const SampleRow row = rows[blockIdx.y];  // of the host's memory: a long way
  team.start();
  pdl_wait();

  logits += int64_t{blockIdx.y} * vocab;
  const int length = 32 * share, begin = (team.cta * T::kWarps + team.warp) * length;  // of the warp
  uint32_t* const staging = (kCtas == 1 ? workspace + int64_t{blockIdx.y} * T::kWarps * length
                                        : reinterpret_cast<uint32_t*>(staged) + (kDraws ? sizeof(scratch) / 4 : 0)) +
                            team.warp * length;
  bool bad = false;
  constexpr int kAtOnce = 20;                        // all of Qwen2.5-VL's
  constexpr bool kTogether = kDraws || kCtas == 16;  // loads that hang on nothing; 8 rows are better off without
  const int given = min(length, vocab - begin);      // the rest of the warp's has key 0
  for (int i = team.lane; i < length; i += 32 * kAtOnce) {
    float x[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = begin + i + 32 * u;
      if (kTogether || i + 32 * u < given) x[u] = logits[kTogether ? min(at, vocab - 1) : at];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const bool exists = i + 32 * u < given;
      bad |= (kTogether || exists) && !(x[u] < INFINITY);
      if (i + 32 * u < length) staging[i + 32 * u] = exists ? key_of(x[u]) : 0;
    }
  }
  __syncwarp();
  uint32_t* const seen_bits = row.seen_row < 0 ? nullptr : seen + int64_t{row.seen_row} * ((vocab + 31) / 32);
  if (seen_bits != nullptr && row.repetition_penalty != 1) {
    for (int i = team.lane; i < share && begin + 32 * i < vocab; i += 32)
      for (uint32_t word = seen_bits[begin / 32 + i]; word != 0; word &= word - 1) {
        uint32_t& key = staging[32 * i + __ffs(static_cast<int>(word)) - 1];
        const float x = penalise(value_of(key), row.repetition_penalty);
        bad |= !(x < INFINITY);
        key = key_of(x);
      }
    __syncwarp();
  }

  const Keys keys{staging + team.lane * share, share, begin + team.lane * share};
  uint32_t most = 0, best = 0;
  for (int i = 0; i < share; i += 4) {
    const uint4 k = *reinterpret_cast<const uint4*>(keys.at + i);
    const uint32_t four[] = {k.x, k.y, k.z, k.w};
#pragma unroll
    for (int u = 0; u < 4; ++u)
      if (four[u] > most) {
        most = four[u];
        best = static_cast<uint32_t>(keys.begin + i + u);
      }
  }
  // The largest key with its id, all bits for bad ones; and the least of the warps' and of the lanes' largest keys.
  const auto unless_empty = [](uint32_t key) { return key == 0 ? kAll : key; };
  Pair ends = outermost(Pair{u64{bad ? kAll : most} << 32 | ~best, unless_empty(most)});
  ends.b = u64{unless_empty(static_cast<uint32_t>(ends.a >> 32))} << 32 | static_cast<uint32_t>(ends.b);
  if (team.lane == 0) {
    tops[team.warp] = ends;
    if constexpr (kFew) scratch.warp_tops[team.warp] = static_cast<uint32_t>(ends.a >> 32);
  }
  __syncthreads();
  const Pair none{0, ~u64{0}};
  if (team.warp == 0) {
    ends = outermost(team.lane < T::kWarps ? tops[team.lane] : none);
    if constexpr (kFew)
      team.template post<kTops>(ends, scratch.warp_tops, scratch.few.tops);
    else
      team.post(ends);
  }
  [[maybe_unused]] double scale = 1.4426950408889634 / static_cast<double>(row.temperature);
  if constexpr (kDraws) asm volatile("" : "+d"(scale));  // now, while messages are under way
  ends = outermost(team.template collect<true, kTops>(none));
  const auto top_key = static_cast<uint32_t>(ends.a >> 32);
  const auto finish = [&](int id) {
    if (team.lane != 0) return;
    ids[blockIdx.y] = ids_for_host[blockIdx.y] = id;
    if (seen_bits != nullptr && id >= 0) seen_bits[id / 32] |= 1u << id % 32;
  };
  bad = top_key == kAll || top_key <= kMinusInfinityKey;
  if (!kDraws || bad || row.temperature == 0) {
    if (team.cta == 0 && team.warp == 0) finish(bad ? -1 : static_cast<int>(~static_cast<uint32_t>(ends.a)));
    return;
  }

  if constexpr (kDraws) {
    const Weigh weigh{value_of(top_key), scale};
    auto* const room = reinterpret_cast<ulonglong2*>(reinterpret_cast<uint32_t*>(&scratch + 1) + T::kThreads * share);
    const Weights weights{weigh, keeps_weights ? room + threadIdx.x : nullptr, T::kThreads};
    // What is below a part of the sum, exactly.
    const auto below = [](float part, u64 total) {
      const u64 factor = __float2ull_rz(part * 0x1p63f) << 1;
      return __umul64hi(factor, total) - (factor * total == 0);
    };
    const auto drawn = [&](u64 total) {
      return __umul64hi(philox(row.seed, row.position) << 11, total);  // floor(uniform * total)
    };
    const auto min_weight = static_cast<u64>(__float2ull_rn(row.min_p * static_cast<float>(kOne)));
    if constexpr (kFew) {
      if (row.top_k > 0 && row.top_k <= Few<kCtas>::kTopK && row.top_k < vocab) {
        const int id = draw_among_few(
            team, scratch.few, scratch.list, scratch.parts.weights, scratch.parts.ties, keys, top_key,
            static_cast<uint32_t>(ends.b >> 32), row.top_k, min_weight, weights,
            [&](u64 total) { return row.top_p < 1 ? below(row.top_p, total) : total; }, drawn);
        if (id >= 0) finish(id);
        if (id != kTooMany) return;
        __syncthreads();
      }
    }
    Kept kept{1, 0, 0, min_weight};
    if (row.top_k > 0 && row.top_k < vocab) {
      uint32_t low = kMinusInfinityKey;
      if (row.top_k <= vocab / length) {
        // Every warp, and below every lane, that has keys has one that is not below the least of their largest.
        low = max(low, static_cast<uint32_t>(ends.b >> 32));
      } else if (row.top_k <= vocab / share) {
        low = max(low, static_cast<uint32_t>(ends.b));
      }
      const auto count = [](int, const auto&, u64(&values)[4]) {
        for (u64& value : values) value = 1;
      };
      kept.key =
          search(
              team, scratch.histogram, scratch.list, keys, low, low, top_key, count, [](uint32_t) { return u64{1}; },
              [](auto&&...) { return u64{0}; }, [&](u64) { return static_cast<u64>(row.top_k) - 1; })
              .key;
    }
    const auto sum_above = [&](const uint32_t(&k)[4], const u64(&values)[4], uint32_t high) {
      u64 sum = 0;
#pragma unroll
      for (int u = 0; u < 4; ++u) sum += k[u] > high && values[u] >= min_weight ? values[u] : 0;
      return sum;
    };
    typename List<kCtas>::Gathered found;
    if (row.top_p < 1) {
      // What is lighter than (1 - top_p) / 2V is not reached, see engine/sampler.cpp; half of that for logf's sake.
      const float negligible = __logf((1 - row.top_p) / (4.0f * static_cast<float>(vocab))) * row.temperature;
      const uint32_t low = max(max(kept.key, kMinusInfinityKey), key_of(value_of(top_key) + negligible));
      const auto border = search(
          team, scratch.histogram, scratch.list, keys, kept.key, low, top_key,
          [&](int i, const auto& k, auto& values) { weights.keep(i, k, values); }, weights,
          [&](int i, const uint32_t(&k)[4], uint32_t high) {
            u64 values[4];
            weights.kept_of(i, k, values);
            return sum_above(k, values, high);
          },
          [&](u64 total) { return below(row.top_p, total); });
      found = border.found;
      const u64 weight = weights(border.key);
      kept.key = border.key;
      kept.ties = border.rest < weight ? 1 : border.rest / weight + 1;
      kept.each = weight < min_weight ? 0 : weight;
    } else {
      --kept.key;
      found = scratch.list.gather(
          team, keys, kept.key, kept.key, true,
          [&](int, const uint32_t(&k)[4], uint32_t high) {
            u64 values[4];
            weigh(k, values);
            return sum_above(k, values, high);
          },
          weights);
    }
    const int id = draw(team, scratch.parts, scratch.list, found, keys, kept, weights, drawn);
    if (id >= 0) finish(id);
  }
}

// Keys of a lane: a multiple of four, so that a warp's ids are whole words of bitmaps.
int share_of(int64_t vocab, int lanes) { return static_cast<int>((vocab + 4 * lanes - 1) / (4 * lanes) * 4); }

template <int kCtas, bool kDraws>
void launch(Stream stream, const Tensor& logits, const SampleRow* rows, const Tensor& seen, const Tensor& workspace,
            const Tensor& ids, const Tensor& ids_for_host) {
  using T = Team<kCtas>;
  const int64_t vocab = logits.dim(1);
  const int share = share_of(vocab, kCtas * T::kThreads);
  const auto kernel = sample_kernel<kCtas, kDraws>;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCtas, static_cast<unsigned>(logits.dim(0)));
  config.blockDim = dim3(T::kThreads);
  config.stream = stream;
  bool keeps_weights = false;
  if (kDraws) config.dynamicSmemBytes = sizeof(Scratch<kCtas>);
  if (kCtas > 1) {
    const auto keys = static_cast<size_t>(T::kThreads * share);
    config.dynamicSmemBytes += keys * sizeof(uint32_t);
    keeps_weights = kDraws && config.dynamicSmemBytes + keys * sizeof(u64) <= kMostShared;
    if (keeps_weights) config.dynamicSmemBytes += keys * sizeof(u64);
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
                           share, keeps_weights, rows, static_cast<uint32_t*>(seen.data),
                           static_cast<uint32_t*>(workspace.data), ids.as<int32_t>(), ids_for_host.as<int32_t>()),
        "sample");
}

}  // namespace

size_t sample_workspace_bytes(int64_t rows, int64_t vocab) {
  constexpr int kThreads = Team<1>::kThreads;
  return use_hopper() ? 0 : static_cast<size_t>(rows * kThreads * share_of(vocab, kThreads)) * sizeof(uint32_t);
}

void sample(Stream stream, const Tensor& logits, const SampleRow* rows, const Tensor& seen, bool all_greedy,
            const Tensor& workspace, const Tensor& ids, const Tensor& ids_for_host) {
  CHECK(logits.rank == 2 && ids.dim(0) == logits.dim(0) && ids_for_host.dim(0) == ids.dim(0) &&
            logits.dim(1) <= kMaxVocab,
        "sample: {}", logits.describe());
  if (logits.dim(0) == 0) return;
  const auto run = [&]<int kCtas>(std::integral_constant<int, kCtas>) {
    all_greedy ? launch<kCtas, false>(stream, logits, rows, seen, workspace, ids, ids_for_host)
               : launch<kCtas, true>(stream, logits, rows, seen, workspace, ids, ids_for_host);
  };
  if (!use_hopper())
    run(std::integral_constant<int, 1>{});
  else if (logits.dim(0) <= 4)
    run(std::integral_constant<int, 16>{});
  else
    run(std::integral_constant<int, 8>{});
}

}  // namespace saccade::cuda
