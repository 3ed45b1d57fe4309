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
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sampling.h"

namespace saccade::cuda {
namespace {

using u64 = unsigned long long;

constexpr unsigned kAll = ~0u;
constexpr int kBins = 2048, kBinBits = 11;
constexpr double kOne = 0x1p44;         // as a fixed-point weight; none is more
constexpr int64_t kMaxVocab = 1 << 18;  // the sum of that many weights leaves the top bit free

// Keys are ordered as the values, and -0 is 0. NaN comes first.
constexpr uint32_t kInfinityKey = 0xff800000, kMinusInfinityKey = 0x007fffff;
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return isnan(x) ? ~0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// 53 random bits: those of uniform() in engine/sampler.cpp.
__device__ u64 philox(u64 seed, u64 position) {
  uint32_t x[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 p0 = u64{0xD2511F53} * x[0], p1 = u64{0xCD9E8D57} * x[2];
    x[0] = static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0;
    x[2] = static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1;
    x[1] = static_cast<uint32_t>(p1);
    x[3] = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (u64{x[0]} << 32 | x[1]) >> 11;
}

// Weights e^((x - max) / T) of keys. Without branches, so that several are under way at once.
struct Weigh {
  double max, scale;  // log2(e) / T
  __device__ u64 operator()(uint32_t key) const {
    constexpr double kInteger = 0x1.8p52;  // adding it leaves a rounded integer in the low bits
    // (2^f - 1) / f for |f| <= 1/2, interpolated at the Chebyshev nodes: 2^f to 2^-44.6
    constexpr double kPower[] = {0.6931471805599453,    0.2402265069581299,     0.055504108664760424,
                                 0.009618129159402558,  0.0013333558179043112,  0.00015403455852453838,
                                 1.525268684626772e-05, 1.3255224878668817e-06, 1.0203121063391729e-07};
    const double y = (static_cast<double>(value_of(key)) - max) * scale, whole = y + kInteger;
    const double f = y - (whole - kInteger);
    double p = kPower[8];
#pragma unroll
    for (int i = 7; i >= 0; --i) p = fma(p, f, kPower[i]);
    p = fma(p, f, 1.0);
    const double unit = __hiloint2double((1023 + 44 + __double2loint(whole)) << 20, 0);  // kOne * 2^whole
    const u64 bits = __double_as_longlong(fma(p, unit, 0x1p52)) & ((u64{1} << 52) - 1);
    return y > -46 ? bits : 0;
  }
};

__device__ __forceinline__ u64 warp_sum(u64 v) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) v += __shfl_xor_sync(kAll, v, other);
  return v;
}

// Where the running sum of values first exceeds `target`, which is below their sum; each lane holds n that follow
// those of the lane before.
struct Place {
  int index;
  u64 before;  // sum of the values before it
};
template <int n>
__device__ __forceinline__ Place first_beyond(const u64 (&v)[n], u64 target) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  u64 sum = 0;
#pragma unroll
  for (int j = 0; j < n; ++j) sum += v[j];
  u64 running = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 left = __shfl_up_sync(kAll, running, step);
    if (lane >= step) running += left;
  }
  Place place{lane * n, running - sum};
  const int hit = __ffs(__ballot_sync(kAll, place.before <= target && target < running)) - 1;
#pragma unroll
  for (int j = 0; j + 1 < n; ++j)
    if (place.index == lane * n + j && place.before + v[j] <= target) {
      place.before += v[j];
      ++place.index;
    }
  return {__shfl_sync(kAll, place.index, hit), __shfl_sync(kAll, place.before, hit)};
}

// The CTAs that share a row, seen from one warp.
template <int kCtas>
struct Team {
  static constexpr int kWarps = kCtas == 1 ? 32 : 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSegments = kCtas * kWarps;
  static constexpr int kHeld = kSegments / 32;  // of all segments, how many a lane holds

  struct Pair {
    u64 a, b;
  };
  struct Shared {
    Pair mail[2][kSegments];  // an exchange writes one while slower warps still read the other
    // Halves of each bin's measure. Top bit of the high one: the bin holds a value that is not the bin's lowest.
    uint32_t low[kBins], high[kBins];
  };

  Shared& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int cta = static_cast<int>(blockIdx.x);
  const int segment = cta * kWarps + static_cast<int>(threadIdx.x) / 32;
  int parity = 0;

  __device__ void sync() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) {
      asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // Address of `p` of this CTA's memory in that of another.
  static __device__ uint32_t address_in(int other, const void* p) {
    uint32_t address = shared_address(p);
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1)
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(other));
#endif
    return address;
  }
  static __device__ uint32_t load(int other, const uint32_t* p) {
    if constexpr (kCtas == 1) return *p;
    uint32_t value = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address_in(other, p)) : "memory");
#endif
    return value;
  }
  // Writes to every CTA's mail; to be read after sync().
  __device__ void post(int slot, Pair pair) {
    Pair* to = &shared.mail[parity][slot];
    if constexpr (kCtas == 1) {
      if (lane == 0) *to = pair;
    }
#if __CUDA_ARCH__ >= 900
    else if (lane < kCtas)
      asm volatile("st.shared::cluster.v2.u64 [%0], {%1, %2};" ::"r"(address_in(lane, to)), "l"(pair.a), "l"(pair.b)
                   : "memory");
#endif
  }
  __device__ const Pair* delivered() {
    sync();
    parity ^= 1;
    return shared.mail[parity ^ 1];
  }
  // Every warp gives a pair; every lane gets those of kHeld neighbouring segments.
  __device__ void exchange(Pair mine, u64 (&a)[kHeld], u64 (&b)[kHeld]) {
    post(segment % kHeld * 32 + segment / kHeld, mine);  // so that lanes read neighbours
    const Pair* mail = delivered();
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      a[j] = mail[j * 32 + lane].a;
      b[j] = mail[j * 32 + lane].b;
    }
  }
};

template <int n>
__device__ __forceinline__ u64 total_of(const u64 (&v)[n]) {
  u64 sum = 0;
#pragma unroll
  for (int j = 0; j < n; ++j) sum += v[j];
  return warp_sum(sum);
}

// Bins of a range of keys, the highest first. Where exponents vary, equal steps of the value spread tokens best;
// otherwise, and in ranges too wide for that, bins are keys with the same leading bits.
struct Bins {
  int shift;
  float scale;  // a power of two, or 0: by bits
  int top;

  __device__ Bins(uint32_t low, uint32_t high) {
    const float x = value_of(high), y = value_of(low), range = x - y;
    shift = std::max(0, 32 - kBinBits - __clz(static_cast<int>(high - low)));
    if ((high >> shift) - (low >> shift) >= kBins) ++shift;
    top = static_cast<int>(high >> shift);
    scale = 0;
    if (range > 1e-30f && range < 1024 && range * 128 > std::max(fabsf(x), fabsf(y))) {
      scale = __uint_as_float((__float_as_uint((kBins - 2) / range) & 0x7f800000u));
      top = __float2int_rd(x * scale);
    }
  }
  __device__ int of(uint32_t key, bool& loose) const {
    if (scale == 0) {
      loose = (key & ((1u << shift) - 1)) != 0;
      return top - static_cast<int>(key >> shift);
    }
    const float x = value_of(key) * scale, whole = floorf(x);
    loose = x != whole;
    return top - static_cast<int>(whole);
  }
  __device__ uint32_t lowest(int bin) const {
    const int at = top - bin;
    return scale == 0 ? static_cast<uint32_t>(at) << shift : key_of(static_cast<float>(at) / scale);
  }
};

// Weighs the keys at start, start + step, ... < stop that pass keep(id, key), four at a time, and visits them.
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
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) values[u] = measure(keys[u]);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (kept[u]) visit(keys[u], values[u]);
  }
}

struct Border {
  uint32_t key;
  u64 rest;    // target less the measure of larger keys
  u64 inside;  // measure of this key
};

// The largest key with which the measure of it and of larger ones exceeds target_of(measure of all); it lies in
// [low, high], and no key is above `high`. All of them: the keys of [begin, end), the warp's segment, that are not
// below `least`. The bins are zero before and after.
template <int kCtas, class Key, class Measure, class TargetOf>
__device__ Border search(Team<kCtas>& team, int begin, int end, Key key, uint32_t least, uint32_t low, uint32_t high,
                         Measure measure, TargetOf target_of) {
  using T = Team<kCtas>;
  constexpr int kOwn = kBins / T::kSegments;  // bins that a warp adds up over the CTAs
  constexpr int kPerLane = std::max(1, kOwn / 32), kLanes = kOwn / kPerLane, kParts = 32 / kLanes;
  auto& s = team.shared;
  Border border{};
  for (bool first = true; first || low != high; first = false) {
    const Bins bins(low, high);
    u64 all = 0;
    const auto keep = [&](int, uint32_t k) { return k >= (first ? least : low) && k <= high; };
    sweep(begin + team.lane, 32, end, key, keep, measure, [&](uint32_t k, u64 value) {
      all += value;
      if (k < low || value == 0) return;
      bool loose;
      const int bin = bins.of(k, loose);
      const auto low_half = static_cast<uint32_t>(value);
      const uint32_t sum = atomicAdd(&s.low[bin], low_half) + low_half;
      const uint32_t high_half = static_cast<uint32_t>(value >> 32) + (sum < low_half);
      if (high_half != 0) atomicAdd(&s.high[bin], high_half);
      if (loose) atomicOr(&s.high[bin], 0x80000000u);
    });
    team.sync();

    u64 values[kPerLane] = {}, own = 0, sums[T::kHeld], alls[T::kHeld];
    uint32_t loose = 0;  // a bit for each of the lane's bins
    const int bin0 = team.segment * kOwn + team.lane % kLanes * kPerLane;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
#pragma unroll
      for (int c = 0; c < kCtas; c += kParts) {
        const int from = c + team.lane / kLanes;
        if (from >= kCtas) continue;
        const uint32_t high_half = T::load(from, &s.high[bin0 + j]);
        values[j] += (u64{high_half & 0x7fffffffu} << 32) + T::load(from, &s.low[bin0 + j]);
        loose |= high_half >> 31 << j;
      }
#pragma unroll
      for (int other = kLanes; other < 32; other *= 2) values[j] += __shfl_xor_sync(kAll, values[j], other);
      if (team.lane >= kLanes) values[j] = 0;
      own += values[j];
    }
#pragma unroll
    for (int other = kLanes; other < 32; other *= 2) loose |= __shfl_xor_sync(kAll, loose, other);
    team.exchange({warp_sum(own), warp_sum(all)}, sums, alls);

    if (first) border.rest = target_of(total_of(alls));
    const Place place = first_beyond(sums, border.rest);
    if (place.index == team.segment) {
      const Place at = first_beyond(values, border.rest - place.before);
      u64 inside = values[0];
#pragma unroll
      for (int j = 1; j < kPerLane; ++j)
        if (at.index % kPerLane == j) inside = values[j];
      inside = __shfl_sync(kAll, inside, at.index / kPerLane);
      loose = __shfl_sync(kAll, loose, at.index / kPerLane) >> at.index % kPerLane & 1;
      team.post(0, {place.before + at.before, inside});
      team.post(1, {static_cast<u64>(team.segment * kOwn + at.index), loose});
    }
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += T::kThreads) s.low[i] = s.high[i] = 0;
    const auto* mail = team.delivered();
    border.rest -= mail[0].a;
    border.inside = mail[0].b;
    const int bin = static_cast<int>(mail[1].a);
    const uint32_t base = bins.lowest(bin);
    if (mail[1].b != 0) {
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
  u64 part[1], sums[T::kHeld], unused[T::kHeld];
  const auto sum_parts = [&] {
    const int from = begin + team.lane * share;
    part[0] = sum_of(from, 1, min(from + share, end));
  };
  if constexpr (kCtas > 1)
    sum_parts();
  else
    part[0] = sum_of(begin + team.lane, 32, end);
  team.exchange({warp_sum(part[0]), 0}, sums, unused);
  u64 target = target_of(total_of(sums));
  const Place place = first_beyond(sums, target);
  if (place.index != team.segment) return -1;
  target -= place.before;
  if constexpr (kCtas == 1) sum_parts();
  while (true) {
    const Place lane = first_beyond(part, target);
    target -= lane.before;
    begin += lane.index * share;
    end = min(begin + share, end);
    if (share == 1) return begin;
    share = (share + 31) / 32;
    sum_parts();
  }
}

// Grid (kCtas, R), clusters of (kCtas, 1). Dynamic shared memory: the keys of a CTA's segments, for teams that draw.
template <int kCtas, bool kDraws>
__global__ void __launch_bounds__(Team<kCtas>::kThreads)
    sample_kernel(const float* logits, int vocab, const SampleRow* rows, uint32_t* seen, int32_t* ids) {
  using T = Team<kCtas>;
  constexpr bool kStaged = kDraws && kCtas > 1;
  extern __shared__ uint32_t staged[];
  __shared__ typename T::Shared shared;
  T team{shared};
  pdl_launch();
  if constexpr (kDraws)
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += T::kThreads) shared.low[i] = shared.high[i] = 0;
  team.sync();  // all of the team must run before one writes to another
  pdl_wait();

  const SampleRow row = rows[blockIdx.y];
  logits += int64_t{blockIdx.y} * vocab;
  uint32_t* const seen_bits = row.seen_row < 0 ? nullptr : seen + int64_t{row.seen_row} * ((vocab + 31) / 32);
  const float penalty = seen_bits == nullptr ? 1 : row.repetition_penalty;
  const int length = (vocab + T::kSegments - 1) / T::kSegments;
  const int begin = min(team.segment * length, vocab), end = min(begin + length, vocab);
  const int first = team.cta * T::kWarps * length;  // of this CTA

  const auto penalised = [&](float x, uint32_t word, int id) {
    if ((word >> id % 32 & 1) == 0) return x;
    return x < 0 ? x * penalty : x / penalty;
  };
  const auto key = [&](int id) {
    if constexpr (kStaged) return staged[id - first];
    return key_of(penalised(logits[id], penalty == 1 ? 0 : seen_bits[id / 32], id));
  };

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
  u64 tops[T::kHeld], lows[T::kHeld];
  team.exchange({u64{warp_most} << 32 | ~best, __reduce_min_sync(kAll, most)}, tops, lows);
  u64 top = tops[0], bottom = tops[0];
  uint32_t lane_bottom = lows[0];
#pragma unroll
  for (int j = 1; j < T::kHeld; ++j) {
    top = std::max(top, tops[j]);
    bottom = std::min(bottom, tops[j]);
    lane_bottom = std::min(lane_bottom, static_cast<uint32_t>(lows[j]));
  }
  const uint32_t top_key = __reduce_max_sync(kAll, static_cast<uint32_t>(top >> 32));
  const uint32_t top_id = __reduce_min_sync(kAll, top >> 32 == top_key ? ~static_cast<uint32_t>(top) : kAll);
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
    const auto one = [](uint32_t) -> u64 { return 1; };
    uint32_t last_key = 0;  // kept: larger keys, and this one up to last_id
    int last_id = vocab;
    if (row.top_k > 0 && row.top_k < vocab) {
      // Every segment, and every lane, has a key that is not below the least of their largest.
      uint32_t low = kMinusInfinityKey;
      if (row.top_k <= T::kSegments)
        low = __reduce_min_sync(kAll, static_cast<uint32_t>(bottom >> 32));
      else if (row.top_k <= 32 * T::kSegments)
        low = __reduce_min_sync(kAll, lane_bottom);
      low = max(low, kMinusInfinityKey);
      const auto k = static_cast<u64>(row.top_k);
      last_key = search(team, begin, end, key, low, low, top_key, one, [&](u64) { return k - 1; }).key;
    }
    if (row.top_p < 1) {
      // What is lighter than (1 - top_p) / 2V is not reached, see engine/sampler.cpp; half of that for logf's sake.
      const double top_p = row.top_p;
      const float negligible = logf((1 - row.top_p) / (4.0f * static_cast<float>(vocab))) * row.temperature;
      const uint32_t low = std::max(last_key, key_of(value_of(top_key) + negligible));
      const Border border = search(team, begin, end, key, last_key, low, top_key, weigh, [&](u64 total) {
        return static_cast<u64>(std::max(1.0, ceil(top_p * static_cast<double>(total)))) - 1;
      });
      last_key = border.key;
      const u64 weight = weigh(border.key);
      if (border.rest + weight < border.inside) {  // not all that are tied
        const auto tied = [&](int, uint32_t k) { return k == border.key; };
        const int id = locate(team, begin, end, key, tied, one, [&](u64) { return border.rest / weight; });
        if (id >= 0) team.post(0, {static_cast<u64>(id), 0});
        last_id = static_cast<int>(team.delivered()[0].a);
      }
    }
    const auto kept = [&](int id, uint32_t k) { return k > last_key || (k == last_key && id <= last_id); };
    const auto min_weight = static_cast<u64>(rint(static_cast<double>(row.min_p) * kOne));
    const auto kept_weight = [&](uint32_t k) {
      const u64 weight = weigh(k);
      return weight >= min_weight ? weight : 0;
    };
    const int id = locate(team, begin, end, key, kept, kept_weight, [&](u64 total) {
      return __umul64hi(philox(row.seed, row.position) << 11, total);  // floor(uniform * total)
    });
    if (id >= 0) finish(id);
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
