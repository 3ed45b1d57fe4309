// Attention with a running maximum over blocks of 64 keys. A block's keys are transposed and, for many queries, its
// values widened into the workspace once for all queries of the task; then tiles of kTileQ queries compute scores (a
// query's values broadcast against vectors of keys), probabilities and weighted values, all in float. Everything that
// one query sums, it sums in an order that does not depend on the queries beside it.
#pragma once

#include "kernels/cpu/functions.h"
#include "kernels/cpu/kernels.h"

namespace saccade::cpu {

// Scores from values widened to float.
template <class S, class T>
struct FloatScores {
  static constexpr int64_t kUnit = 1;  // values that are multiplied at a time
  static typename S::F load(const T* p, int64_t units) {
    return units >= S::kLanes ? S::load(p) : S::load_part(p, units);
  }
  static typename S::F add(typename S::F sum, const float* q, typename S::F keys) {
    return S::fma(S::set(*q), keys, sum);
  }
};

// What the next block of keys will want, fetched a little with every row of values.
struct Ahead {
  static constexpr int64_t kLine = 64;
  const char *k = nullptr, *v = nullptr;
  int64_t stride = 0;         // bytes from row to row
  int64_t lines = 0, at = 0;  // of a row: wanted, fetched
  int64_t step = 0;           // lines per pass

  // Starts a pass over the rows of a block; returns how many lines row j must fetch from k + j * stride on.
  Ahead pass() {
    Ahead now = *this;
    now.k += at * kLine;
    now.v += at * kLine;
    now.lines = lines - at < step ? lines - at : step;
    at += now.lines;
    return now;
  }
  [[gnu::always_inline]] void fetch(int64_t row) const {
    for (int64_t line = 0; line < lines; ++line) {
      __builtin_prefetch(k + row * stride + line * kLine, 0, 2);
      __builtin_prefetch(v + row * stride + line * kLine, 0, 2);
    }
  }
};

// The tiles, the same for every type of keys.
template <class S, class Scores>
struct AttentionTiles {
  using F = typename S::F;
  static constexpr int kLanes = S::kLanes;
  static constexpr int64_t kQueries = S::kTileQ;
  static constexpr bool kPairsOfValues = false;
  struct Use {};  // what must stand while tiles are used

  // scores[r][j] = q[r] . key j, for kQ queries `stride` apart.
  template <int kQ>
  static void score(const float* q, int64_t stride, int64_t units, const float* keys, float* scores) {
    for (int64_t j = 0; j < kKeyBlock; j += S::kTileV * kLanes) {
      F sum[kQ][S::kTileV];
      for (auto& row : sum) {
        for (auto& s : row) s = S::set(0);
      }
      for (int64_t u = 0; u < units; ++u) {
        F k[S::kTileV];
        for (int v = 0; v < S::kTileV; ++v) k[v] = S::load(keys + u * kKeyBlock + j + v * kLanes);
        for (int r = 0; r < kQ; ++r) {
          for (int v = 0; v < S::kTileV; ++v) sum[r][v] = Scores::add(sum[r][v], q + r * stride + u, k[v]);
        }
      }
      for (int r = 0; r < kQ; ++r) {
        for (int v = 0; v < S::kTileV; ++v) S::store(scores + r * kKeyBlock + j + v * kLanes, sum[r][v]);
      }
    }
  }

  // acc[r] = acc[r] * scale[r] + sum over j < n of p[r][j] * value j, over kV vectors of channels. A call of its own,
  // with that many arguments, would cost prefill some 5%.
  template <int kQ, int kV, class V>
  [[gnu::always_inline]] static inline void weigh(const float* p, const float* scale, const V* values, int64_t stride,
                                                  int64_t n, float* acc, int64_t acc_stride, const Ahead& ahead) {
    F sum[kQ][kV];
    for (int r = 0; r < kQ; ++r) {
      for (int v = 0; v < kV; ++v) sum[r][v] = S::load(acc + r * acc_stride + v * kLanes) * S::set(scale[r]);
    }
    for (int64_t j = 0; j < n; ++j) {
      ahead.fetch(j);
      F x[kV];
      for (int v = 0; v < kV; ++v) x[v] = S::load(values + j * stride + v * kLanes);
      for (int r = 0; r < kQ; ++r) {
        const F weight = S::set(p[r * kKeyBlock + j]);
        for (int v = 0; v < kV; ++v) sum[r][v] = S::fma(weight, x[v], sum[r][v]);
      }
    }
    for (int r = 0; r < kQ; ++r) {
      for (int v = 0; v < kV; ++v) S::store(acc + r * acc_stride + v * kLanes, sum[r][v]);
    }
  }

  // Calls the tile of `rows` queries (and `vectors` vectors).
  template <int kQ = S::kTileQ>
  static void score_rows(int64_t rows, const float* q, int64_t stride, int64_t units, const float* keys,
                         float* scores) {
    if (rows == kQ) return score<kQ>(q, stride, units, keys, scores);
    if constexpr (kQ > 1) score_rows<kQ - 1>(rows, q, stride, units, keys, scores);
  }
  template <int kQ = S::kTileQ, int kV = S::kTileV, class V>
  static void weigh_rows(int64_t rows, int64_t vectors, const float* p, const float* scale, const V* values,
                         int64_t stride, int64_t n, float* acc, int64_t acc_stride, const Ahead& ahead) {
    if (rows < kQ) {
      if constexpr (kQ > 1) weigh_rows<kQ - 1, kV>(rows, vectors, p, scale, values, stride, n, acc, acc_stride, ahead);
    } else if (vectors < kV) {
      if constexpr (kV > 1) weigh_rows<kQ, kV - 1>(rows, vectors, p, scale, values, stride, n, acc, acc_stride, ahead);
    } else {
      weigh<kQ, kV>(p, scale, values, stride, n, acc, acc_stride, ahead);
    }
  }
};

template <class S, class T, class Scores, class Tiles = AttentionTiles<S, Scores>>
class Attention {
 public:
  static void run(const AttendArgs& args) { Attention(args).run(); }

  // TypeKernels::merge
  static void merge(float* partial, int64_t spans, int64_t stride, int64_t dim, T* y) {
    for (int64_t s = 1; s < spans; ++s) {
      const float* more = partial + s * stride;
      fold(partial, partial[dim], partial[dim + 1], more, more[dim], more[dim + 1], dim);
    }
    finish(partial, partial[dim + 1], dim, y);
  }

 private:
  using F = typename S::F;
  static constexpr int64_t kLanes = S::kLanes;
  static constexpr int64_t kWidenFrom = 4 * Tiles::kQueries;
  static constexpr float kNone = -__builtin_inff();

  // What a query has gathered: probabilities relative to exp(top), their sum, values weighted by them.
  struct State {
    float *values, *top, *sum;
  };

  explicit Attention(const AttendArgs& args)
      : a(args),
        queries(args.rows * args.group),
        units(args.key_dim / Scores::kUnit),
        padded_key(attend_padded(args.key_dim)),
        padded(attend_padded(args.value_dim)),
        widens(Tiles::kPairsOfValues || queries > kWidenFrom || args.value_dim % kLanes != 0) {
    float* p = args.workspace;
    const auto take = [&p](int64_t n) {
      float* from = p;
      p += n;
      return from;
    };
    keys_t = take(kKeyBlock * padded_key);
    values = take(kKeyBlock * padded);
    q = take(kQueryBlock * padded_key);
    for (State* s : {&span, &total}) {
      *s = {take(kQueryBlock * padded), take(kQueryBlock), take(kQueryBlock)};
    }
  }

  void run() {
    [[maybe_unused]] const typename Tiles::Use use;
    if constexpr (Tiles::kPairsOfValues) {  // its tiles take whole vectors of units
      for (int64_t u = units * kKeyBlock; u % (kLanes * kKeyBlock) != 0; u += kLanes) S::store(keys_t + u, S::set(0));
    }
    for (int64_t i = 0; i < queries; ++i) {
      const T* from = static_cast<const T*>(a.q) + i / a.group * a.q_stride + i % a.group * a.key_dim;
      float* to = q + i * padded_key;
      for (int64_t u = 0, count = units; u < count; u += kLanes) {
        S::store(to + u, Scores::load(from + u * Scores::kUnit, count - u));
      }
    }
    for (int64_t begin = a.begin; begin < a.keys; begin += kKeySpan) {
      attend_span(begin, begin + kKeySpan < a.keys ? begin + kKeySpan : a.keys);
      if (begin == a.begin) {
        const State first = span;
        span = total;
        total = first;
        continue;
      }
      for (int64_t i = 0; i < queries; ++i) {
        fold(total.values + i * padded, total.top[i], total.sum[i], span.values + i * padded, span.top[i], span.sum[i],
             a.value_dim);
      }
    }
    for (int64_t i = 0; i < queries; ++i) {
      const float* from = total.values + i * padded;
      if (a.partial) {
        float* to = a.partial + i * (a.value_dim + 2);
        for (int64_t d = 0; d < a.value_dim; ++d) to[d] = from[d];
        to[a.value_dim] = total.top[i];
        to[a.value_dim + 1] = total.sum[i];
      } else {
        T* to = static_cast<T*>(a.y) + i / a.group * a.y_stride + i % a.group * a.value_dim;
        finish(from, total.sum[i], a.value_dim, to);
      }
    }
  }

  void attend_span(int64_t begin, int64_t end) {
    for (int64_t i = 0; i < queries; ++i) {
      span.top[i] = kNone;
      span.sum[i] = 0;
    }
    for (int64_t i = 0; i < queries * padded; ++i) span.values[i] = 0;
    for (int64_t block = begin; block < end; block += kKeyBlock) {
      // Rows before the first that sees the block have nothing to do with it.
      const int64_t unseen = a.causal ? block + 1 - a.visible : 0;
      const int64_t first = unseen > 0 ? unseen * a.group : 0;
      if (first >= queries) return;
      const int64_t n = end - block < kKeyBlock ? end - block : kKeyBlock;
      pack(block / kKeyBlock, n);
      const int64_t tiles = (queries - first + Tiles::kQueries - 1) / Tiles::kQueries;
      const int64_t rows = (queries - first + tiles - 1) / tiles;  // of a tile, about the same for all
      Ahead ahead = after(block + kKeyBlock, tiles);
      for (int64_t i = first; i < queries; i += rows) {
        attend_tile(i, queries - i < rows ? queries - i : rows, block, n, ahead);
      }
    }
  }

  // What follows the keys before `next`: more of this task's, or the next task's first.
  Ahead after(int64_t next, int64_t tiles) const {
    const AttendArgs* task = next < a.keys ? &a : a.next;
    if (!task) return {};
    const int64_t block = next < a.keys ? next / kKeyBlock : task->begin / kKeyBlock;
    const int64_t at = task->places.block(block);
    const int64_t key_dim = a.key_dim - a.tail_dim, longest = key_dim > a.value_dim ? key_dim : a.value_dim;
    Ahead ahead;
    ahead.k = reinterpret_cast<const char*>(static_cast<const T*>(task->k) + at);
    ahead.v = reinterpret_cast<const char*>(static_cast<const T*>(task->v) + at);
    ahead.stride = task->places.token_stride * static_cast<int64_t>(sizeof(T));
    ahead.lines = (longest * static_cast<int64_t>(sizeof(T)) + Ahead::kLine - 1) / Ahead::kLine;
    if (task->k == task->v) {  // one row: half of it as k, half as v
      ahead.lines = (ahead.lines + 1) / 2;
      ahead.v += ahead.lines * Ahead::kLine;
    }
    ahead.step = (ahead.lines + tiles * value_passes() - 1) / (tiles * value_passes());
    return ahead;
  }

  int64_t value_passes() const { return ((a.value_dim + kLanes - 1) / kLanes + S::kTileV - 1) / S::kTileV; }

  // Keys of a block transposed to [units][64], values widened to [64][padded]; what is beyond the n-th is zero.
  void pack(int64_t block, int64_t n) {
    const T* k = static_cast<const T*>(a.k) + a.places.block(block);
    const int64_t stride = a.places.token_stride, tail = a.tail_dim / Scores::kUnit;
    for (int64_t j = 0; j < kKeyBlock; j += kLanes) transpose(k + j * stride, stride, units - tail, n - j, keys_t + j);
    if (tail > 0) {
      const T* last = static_cast<const T*>(a.k_tail) + a.tail_places.block(block);
      const int64_t last_stride = a.tail_places.token_stride;
      float* to = keys_t + (units - tail) * kKeyBlock;
      for (int64_t j = 0; j < kKeyBlock; j += kLanes)
        transpose(last + j * last_stride, last_stride, tail, n - j, to + j);
    }
    if constexpr (Tiles::kPairsOfValues) {
      Tiles::pair_values(values_of(block), stride, n, a.value_dim, values, padded);
    } else if (widens) {
      widen(values_of(block), n);
    }
  }

  const T* values_of(int64_t block) const { return static_cast<const T*>(a.v) + a.places.block(block); }

  void widen(const T* v, int64_t n) {
    // Stores might change members, for all GCC knows.
    const int64_t dim = a.value_dim, stride = a.places.token_stride, to_stride = padded;
    float* to = values;
    for (int64_t j = 0; j < n; ++j, v += stride, to += to_stride) {
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) S::store(to + d, S::load(v + d));
      if (d < dim) S::store(to + d, S::load_part(v + d, dim - d));
    }
  }

  // `all` units of kLanes keys, of which n are there.
  static void transpose(const T* k, int64_t stride, int64_t all, int64_t n, float* to) {
    for (int64_t u = 0; u < all; u += kLanes) {
      const T* from = k + u * Scores::kUnit;
      F rows[kLanes];
      if (n >= kLanes && u + kLanes <= all) {
        for (int64_t i = 0; i < kLanes; ++i, from += stride) rows[i] = Scores::load(from, kLanes);
      } else {
        for (int64_t i = 0; i < kLanes; ++i, from += stride) {
          rows[i] = i < n ? Scores::load(from, all - u) : S::set(0);
        }
      }
      S::transpose(rows);
      const int64_t count = all - u < kLanes ? all - u : kLanes;
      for (int64_t i = 0; i < count; ++i) S::store(to + (u + i) * kKeyBlock, rows[i]);
    }
  }

  // Queries [i, i + rows) and the n keys from `block` on.
  void attend_tile(int64_t i, int64_t rows, int64_t block, int64_t n, Ahead& ahead) {
    alignas(64) float p[Tiles::kQueries * kKeyBlock];
    float scale[Tiles::kQueries];
    Tiles::score_rows(rows, q + i * padded_key, padded_key, units, keys_t, p);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t sees = a.causal ? a.visible + (i + r) / a.group - block : n;
      scale[r] = soften(p + r * kKeyBlock, sees < n ? sees : n, span.top[i + r], span.sum[i + r]);
    }
    if constexpr (Tiles::kPairsOfValues) {
      for (int64_t pass = 0; pass < value_passes(); ++pass) {
        const Ahead now = ahead.pass();
        for (int64_t j = 0; j < n; ++j) now.fetch(j);
      }
      Tiles::weigh_pairs(rows, padded, p, scale, values, span.values + i * padded);
    } else if (widens) {
      weigh(i, rows, p, scale, values, padded, n, ahead);
    } else {
      weigh(i, rows, p, scale, values_of(block / kKeyBlock), a.places.token_stride, n, ahead);
    }
  }

  template <class V>
  [[gnu::always_inline]] inline void weigh(int64_t i, int64_t rows, const float* p, const float* scale, const V* from,
                                           int64_t stride, int64_t n, Ahead& ahead) {
    const int64_t vectors = (a.value_dim + kLanes - 1) / kLanes;
    const int64_t most = (vectors + value_passes() - 1) / value_passes();
    for (int64_t v = 0; v < vectors; v += most) {
      Tiles::weigh_rows(rows, vectors - v < most ? vectors - v : most, p, scale, from + v * kLanes, stride, n,
                        span.values + i * padded + v * kLanes, padded, ahead.pass());
    }
  }

  // Scores -> exp(score * scale - top) for the first n of a block, 0 for the others; returns what earlier sums must
  // be multiplied by.
  float soften(float* p, int64_t n, float& top, float& sum) const {
    const F scale = S::set(a.scale);
    F highest = S::set(kNone);
    for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
      const F x = S::mask_beyond(S::load(p + j) * scale, n - j);
      S::store(p + j, x);
      highest = S::max(highest, x);
    }
    const float block_top = S::top(highest), new_top = block_top > top ? block_top : top;
    F block_sum = S::set(0);
    for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
      const F x = exp<S>(S::load(p + j) - S::set(new_top));
      S::store(p + j, x);
      block_sum = block_sum + x;
    }
    const float keep = first_lane(exp<S>(S::set(top - new_top)));
    top = new_top;
    sum = sum * keep + S::sum(block_sum);
    return keep;
  }

  static void fold(float* values, float& top, float& sum, const float* more, float more_top, float more_sum,
                   int64_t dim) {
    const float highest = more_top > top ? more_top : top;
    const F old_scale = exp<S>(S::set(top - highest)), new_scale = exp<S>(S::set(more_top - highest));
    for (int64_t d = 0; d < dim; d += kLanes) {
      put(values + d, S::fma(load(more + d, dim - d), new_scale, load(values + d, dim - d) * old_scale), dim - d);
    }
    sum = first_lane(S::fma(S::set(more_sum), new_scale, S::set(sum) * old_scale));
    top = highest;
  }

  static void finish(const float* values, float sum, int64_t dim, T* y) {
    const F share = S::set(1 / sum);
    for (int64_t d = 0; d < dim; d += kLanes) put(y + d, load(values + d, dim - d) * share, dim - d);
  }

  template <class E>
  static F load(const E* p, int64_t n) {
    return n >= kLanes ? S::load(p) : S::load_part(p, n);
  }
  template <class E>
  static void put(E* p, F x, int64_t n) {
    if (n >= kLanes) {
      S::store(p, x);
    } else {
      S::store_part(p, x, n);
    }
  }
  static float first_lane(F x) { return x[0]; }

  const AttendArgs& a;
  const int64_t queries, units, padded_key, padded;
  const bool widens;  // values once for all tiles; few tiles read them as they lie
  float *keys_t, *values, *q;
  State span, total;
};

}  // namespace saccade::cpu
