// The next token where top-k leaves few: the keys that can be among the k largest travel to one CTA, which ranks them
// by comparing each with each and draws. Top-p and min-p cost next to nothing then.
#pragma once

#include "kernels/cuda/sampling_list.cuh"

namespace saccade::cuda {

template <int kCtas>
struct Few {
  using T = Team<kCtas>;
  static constexpr int kTopK = kCtas * T::kWarps / 2;  // that large k may be
  static constexpr int kMost = 256;
  alignas(16) uint32_t tops[kCtas * T::kWarps];  // the largest key of each warp of the team
  alignas(16) u64 weights[kMost + 4];            // of the keys that came, in the order of ids
  alignas(16) uint32_t keys[kMost + 4];
  int ids[kMost];
};

inline constexpr int kTooMany = -2;

// A key that at least `top_k` keys of the row are not below, 0 if none was found: 32 values from the largest to the
// least of the warps' largest keys, of which the highest that top_k warps reach is taken. `counts`: kThreads.
template <int kCtas>
__device__ uint32_t few_bound(const Team<kCtas>& team, const Few<kCtas>& few, uint32_t high, uint32_t low, int top_k,
                              uint32_t* counts) {
  const float most = value_of(high), range = most - value_of(low);
  const uint32_t bound = key_of(most - (range < 1e30f ? range : 100) * static_cast<float>(team.lane) / 31);
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < kCtas; i += 4) {
    const uint4 k = *reinterpret_cast<const uint4*>(few.tops + team.warp * kCtas + i);
    count += (k.x >= bound) + (k.y >= bound) + (k.z >= bound) + (k.w >= bound);
  }
  counts[threadIdx.x] = count;
  __syncthreads();
  count = 0;
#pragma unroll
  for (int w = 0; w < Team<kCtas>::kWarps; ++w) count += counts[32 * w + team.lane];
  const uint32_t reached = __ballot_sync(kAll, count >= static_cast<uint32_t>(top_k));
  return reached == 0 ? 0 : __shfl_sync(kAll, bound, __ffs(static_cast<int>(reached)) - 1);
}

// The draw, as draw(): -1 from all but the first warp of the first CTA; kTooMany from all, if there are. `low`: the
// least of the warps' largest keys. `limit_of` and `target_of` turn sums of weights into top-p's limit and the target.
template <int kCtas, class LimitOf, class TargetOf>
__device__ int draw_among_few(Team<kCtas>& team, Few<kCtas>& few, List<kCtas>& list, u64* parts, uint32_t* counts,
                              Keys keys, uint32_t high, uint32_t low, int top_k, u64 min_weight, const Weights& weights,
                              LimitOf limit_of, TargetOf target_of) {
  using T = Team<kCtas>;
  const uint32_t bound = few_bound(team, few, high, low, top_k, counts);
  if (bound == 0) return kTooMany;
  const auto count =
      static_cast<int>(list.gather(
                               team, keys, bound - 1, kAll, false, [](auto&&...) { return u64{0}; }, weights)
                           .ctas.listed);
  const auto all = static_cast<int>(__reduce_add_sync(kAll, static_cast<uint32_t>(count)));
  if (__any_sync(kAll, count > list.kEach) || all > few.kMost) return kTooMany;
  if (team.cta != 0) return -1;

  if (team.warp < kCtas) {
    const auto begin = static_cast<int>(__reduce_add_sync(kAll, team.lane < team.warp ? count : 0));
    const int sent = __shfl_sync(kAll, count, team.warp);
#pragma unroll 1
    for (int i = team.lane; i < sent; i += 32) {
      const auto entry = list.entries[team.warp][i];
      few.keys[begin + i] = entry.key;
      few.ids[begin + i] = entry.id;
      few.weights[begin + i] = entry.value;
    }
  }
  if (threadIdx.x < 4) few.keys[all + threadIdx.x] = 0;  // ranks nowhere
  __syncthreads();
  // Of each: how many are larger, and what weighs all that rank before it; several threads share the work.
  const int width = all <= 64 ? 64 : all <= 128 ? 128 : 256;
  const int i = static_cast<int>(threadIdx.x) % width, part = static_cast<int>(threadIdx.x) / width;
  uint32_t larger = 0;
  u64 before = 0;
  if (i - team.lane < all) {
    const uint32_t key = i < all ? few.keys[i] : kAll;
#pragma unroll 1
    for (int j = 4 * part; j < all; j += 4 * T::kThreads / width) {
      const uint4 k = *reinterpret_cast<const uint4*>(few.keys + j);
      const ulonglong2 w0 = *reinterpret_cast<const ulonglong2*>(few.weights + j),
                       w1 = *reinterpret_cast<const ulonglong2*>(few.weights + j + 2);
      const uint32_t four[] = {k.x, k.y, k.z, k.w};
      const u64 weights[] = {w0.x, w0.y, w1.x, w1.y};
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        larger += four[u] > key;
        before += four[u] > key || (four[u] == key && j + u < i) ? weights[u] : 0;
      }
    }
  }
  parts[threadIdx.x] = before;
  counts[threadIdx.x] = larger;
  __syncthreads();
  if (part == 0) {
#pragma unroll 1
    for (int t = i + width; t < T::kThreads; t += width) {
      before += parts[t];
      larger += counts[t];
    }
    parts[i] = before;
    if (i < all && larger >= static_cast<uint32_t>(top_k)) few.weights[i] = 0;
  }
  __syncthreads();
  if (team.warp != 0) return -1;
  const int each = (all + 31) / 32, begin = team.lane * each, end = min(begin + each, all);
  u64 sum = 0;
#pragma unroll 1
  for (int c = begin; c < end; ++c) sum += few.weights[c];
  const u64 limit = limit_of(warp_sum(sum));
  sum = 0;
#pragma unroll 1
  for (int c = begin; c < end; ++c) {
    if (parts[c] > limit || few.weights[c] < min_weight) few.weights[c] = 0;
    sum += few.weights[c];
  }
  u64 target = target_of(warp_sum(sum));
  const Place place = first_beyond(sum, target);
  target -= place.before;
  int c = begin;
#pragma unroll 1
  for (; c + 1 < end && target >= few.weights[c]; ++c) target -= few.weights[c];
  return few.ids[__shfl_sync(kAll, c, place.lane)];
}

}  // namespace saccade::cuda
