#include <numeric>

#include "ops/op_test.h"

namespace saccade {
namespace {

constexpr DType kTypes[] = {DType::kBF16, DType::kF32};

using Form = Tensor (*)(const Ctx&, const Tensor&, const Weight&, const Tensor&, const PagedKv&, int64_t, float);
constexpr Form kForms[] = {ops::mla_absorbed_attention, ops::mla_expanded_attention};

struct Sizes {
  int64_t heads, plain, turned, latent, value;

  int64_t query() const { return plain + turned; }
  int64_t row() const { return latent + turned; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(query())); }
};

// A cache of several sequences in shuffled pages, and the weight; all of the cache that no sequence owns is NaN.
struct Layer {
  Sizes sizes;
  std::vector<int64_t> lens;
  std::vector<std::vector<int32_t>> pages;  // of each sequence
  Tensor cache;
  Weight kv_b;

  Layer(Guarded& memory, DType dtype, DType weight, Sizes s, std::vector<int64_t> lengths)
      : sizes(s), lens(std::move(lengths)) {
    int64_t count = 2;  // one unused page at least on either side
    for (const int64_t len : lens) count += (len + kPageTokens - 1) / kPageTokens;
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), memory.rng());
    cache = memory.poison(dtype, {count, kPageTokens, s.row()});
    std::normal_distribution<float> value(0, 1);
    size_t next = 0;
    for (size_t b = 0; b < lens.size(); ++b) {
      pages.emplace_back();
      for (int64_t t = 0; t < lens[b]; ++t) {
        if (t % kPageTokens == 0) pages[b].push_back(order[next++]);
        for (int64_t i = 0; i < s.row(); ++i) Guarded::set(cache, offset(b, t) + i, value(memory.rng()));
      }
    }
    kv_b.parts = 1;
    kv_b.data[0] = memory.normal(weight, {s.heads * (s.plain + s.value), s.latent},
                                 1 / std::sqrt(static_cast<float>(s.latent)));  // keys and values of about 1
  }

  int64_t offset(size_t b, int64_t t) const {
    return (pages[b][static_cast<size_t>(t / kPageTokens)] * kPageTokens + t % kPageTokens) * sizes.row();
  }

  PagedKv step(Guarded& memory, const std::vector<size_t>& sequences, const std::vector<int64_t>& rows,
               const std::vector<int64_t>& ends) const {
    return step_of(memory, pages, sequences, rows, ends);
  }
};

// Keys and values of one head of a sequence by their definition, in double.
struct Head {
  std::vector<std::vector<double>> latents, keys, values;
  std::vector<double> weight;  // [N + Dv][C]

  Head(const Layer& layer, size_t b, int64_t h) {
    const Sizes& s = layer.sizes;
    const int64_t rows = s.plain + s.value;
    for (int64_t i = 0; i < rows * s.latent; ++i) weight.push_back(at(layer.kv_b.data[0], h * rows * s.latent + i));
    for (int64_t j = 0; j < layer.lens[b]; ++j) {
      std::vector<double> row;
      for (int64_t i = 0; i < s.row(); ++i) row.push_back(at(layer.cache, layer.offset(b, j) + i));
      auto& key = keys.emplace_back();
      auto& value = values.emplace_back();
      for (int64_t n = 0; n < rows; ++n) {
        (n < s.plain ? key : value).push_back(ref::dot(weight.data() + n * s.latent, row.data(), s.latent));
      }
      key.insert(key.end(), row.begin() + s.latent, row.end());
      latents.push_back(row);
    }
  }

  // y of query q over the first n keys, and how far each may be off in either form.
  void attend(const Sizes& s, DType dtype, const std::vector<double>& q, int64_t n, std::vector<double>& y,
              std::vector<double>& error) const {
    const auto scale = static_cast<double>(s.scale());
    std::vector<double> p(static_cast<size_t>(n)), mean(static_cast<size_t>(s.latent)), absorbed(mean.size());
    const auto of = [](const auto& list) { return [&list](int64_t j) { return list[static_cast<size_t>(j)].data(); }; };
    y.resize(static_cast<size_t>(s.value));
    error.resize(y.size());
    ref::attend(q.data(), of(keys), of(values), n, s.query(), s.value, s.scale(), p.data(), y.data());
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (size_t c = 0; c < mean.size(); ++c) {
      for (size_t j = 0; j < p.size(); ++j) mean[c] += p[j] / sum * latents[j][c];
      for (size_t i = 0; i < static_cast<size_t>(s.plain); ++i) absorbed[c] += q[i] * weight[i * mean.size() + c];
    }
    // A score sums products of rounded values (q W_UK, or the keys): independent errors of eps each, so four times the
    // root of their squares; float sums add their own to the sizes of the terms. Probabilities change by twice that.
    const double eps = eps_of(dtype) + 4 * kEpsFloat;
    double score_error = 0, largest = 0;
    for (size_t j = 0; j < p.size(); ++j) {
      double rounded_query = 0, rounded_key = 0, terms = 0;
      for (size_t c = 0; c < mean.size(); ++c) {
        const double term = absorbed[c] * latents[j][c];
        rounded_query += term * term;
        terms += std::abs(term);
      }
      for (size_t i = 0; i < q.size(); ++i) {
        const double term = q[i] * keys[j][i];
        rounded_key += term * term;
        terms += std::abs(term);
      }
      const double off = 4 * eps * std::sqrt(std::max(rounded_query, rounded_key)) +
                         kEpsFloat * terms * (4 * std::sqrt(static_cast<double>(s.row())) + 8);
      score_error = std::max(score_error, off * scale + kEpsFloat * terms * scale);
      for (const double v : values[j]) largest = std::max(largest, std::abs(v));
    }
    // Then the values are rounded, or the mean of the latents and with it its product with W_UV; and the result.
    for (size_t v = 0; v < y.size(); ++v) {
      double rounded_mean = 0;
      for (size_t c = 0; c < mean.size(); ++c) {
        const double term = mean[c] * weight[(static_cast<size_t>(s.plain) + v) * mean.size() + c];
        rounded_mean += term * term;
      }
      const double sums = kEpsFloat * (8 * std::sqrt(static_cast<double>(n + s.latent)) + 32);
      error[v] = largest * (2 * score_error + eps + sums) + 4 * eps * std::sqrt(rounded_mean) + eps * std::abs(y[v]);
    }
  }
};

using MlaTest = OpTest;

TEST_P(MlaTest, BothFormsMatchDouble) {
  struct Case {
    Sizes sizes;
    std::vector<int64_t> lens, rows;
  };
  const std::vector<Case> cases = {{{1, 2, 2, 4, 3}, {1}, {1}},
                                   {{3, 6, 4, 10, 5}, {5, 64, 65}, {5, 1, 3}},
                                   {{16, 16, 8, 32, 16}, {200, 130}, {1, 9}},
                                   {{3, 20, 6, 34, 24}, {577, 70}, {33, 70}},
                                   {{16, 10, 2, 18, 12}, {1100, 513}, {1, 2}},
                                   {{2, 128, 64, 512, 128}, {70}, {2}},
                                   {{130, 4, 2, 16, 16}, {70}, {3}}};
  int threads = 0;
  for (const DType dtype : kTypes) {
    for (const Case& c : cases) {
      const Sizes& s = c.sizes;
      for (const DType weight : kTypes) {
        if (dtype == DType::kBF16 && weight == DType::kF32) continue;
        SCOPED_TRACE(fmt::format("{} by {} H {} N {} R {} C {} Dv {}", dtype_name(dtype), dtype_name(weight), s.heads,
                                 s.plain, s.turned, s.latent, s.value));
        const Layer layer(memory, dtype, weight, s, c.lens);
        std::vector<size_t> all(c.lens.size());
        std::iota(all.begin(), all.end(), size_t{0});
        // The last sequence's step ends one token early where it can: what follows is in the cache but not visible.
        std::vector<int64_t> ends = c.lens;
        if (ends.back() > c.rows.back()) --ends.back();
        const PagedKv kv = layer.step(memory, all, c.rows, ends);
        const int64_t t = std::accumulate(c.rows.begin(), c.rows.end(), int64_t{0});
        const Tensor q = memory.normal(dtype, {t, s.heads, s.query()});
        threads = threads % 3 + 1;
        Tensor results[2];
        for (size_t f = 0; f < 2; ++f) {
          results[f] = kForms[f](ctx(threads), q, layer.kv_b, layer.cache, kv, s.value, s.scale());
        }
        std::vector<double> expected, error;
        int64_t first = 0;
        for (size_t b = 0; b < all.size(); first += c.rows[b++]) {
          for (int64_t h = 0; h<s.heads; h += s.heads> 16 ? 43 : 1) {
            const Head head(layer, b, h);
            for (int64_t r = 0; r < c.rows[b]; r += 1 + r % 7) {
              const std::vector<double> all_heads = doubles(q.slice(first + r, first + r + 1));
              const double* mine = all_heads.data() + h * s.query();
              head.attend(s, dtype, std::vector<double>(mine, mine + s.query()), ends[b] - c.rows[b] + r + 1, expected,
                          error);
              for (int64_t v = 0; v < s.value; ++v) {
                const int64_t i = ((first + r) * s.heads + h) * s.value + v;
                const auto place = static_cast<size_t>(v);
                ASSERT_NEAR(at(results[0], i), expected[place], error[place])
                    << "absorbed " << b << " " << r << " " << h;
                ASSERT_NEAR(at(results[1], i), expected[place], error[place])
                    << "expanded " << b << " " << r << " " << h;
              }
            }
          }
        }
        arena.reset();
      }
    }
  }
}

TEST_P(MlaTest, ChunksAndBatchesDoNotMatter) {
  for (const DType dtype : kTypes) {
    for (const Sizes& s : {Sizes{4, 16, 8, 32, 16}, Sizes{16, 18, 2, 48, 20}}) {
      for (size_t f = 0; f < 2; ++f) {
        SCOPED_TRACE(fmt::format("{} H {} form {}", dtype_name(dtype), s.heads, f));
        const int64_t length = 1200, rows = 150, before = length - rows;
        const Layer layer(memory, dtype, dtype, s, {length, 700, 3});
        const Tensor q = memory.normal(dtype, {rows, s.heads, s.query()});
        const Tensor others = memory.normal(dtype, {4, s.heads, s.query()});
        const auto attend = [&](int threads, const Tensor& x, const PagedKv& kv) {
          return kForms[f](ctx(threads), x, layer.kv_b, layer.cache, kv, s.value, s.scale());
        };
        const Tensor whole = attend(1, q, layer.step(memory, {0}, {rows}, {length}));
        const std::vector<int64_t> cuts = {0, 1, 2, 5, 21, 100, 149, 150};
        for (size_t c = 1; c < cuts.size(); ++c) {
          // Alone, with all the threads there are.
          const int64_t n = cuts[c] - cuts[c - 1], end = before + cuts[c];
          const Tensor part = q.slice(cuts[c - 1], cuts[c]), expected = whole.slice(cuts[c - 1], cuts[c]);
          EXPECT_TRUE(same_bits(attend(3, part, layer.step(memory, {0}, {n}, {end})), expected)) << cuts[c - 1];
          // Between others.
          const Tensor mixed = memory.poison(dtype, {n + 4, s.heads, s.query()});
          std::memcpy(mixed.data, others.data, others.bytes() / 4);
          std::memcpy(mixed.slice(1, n + 1).data, part.data, part.bytes());
          std::memcpy(mixed.slice(n + 1, n + 4).data, others.slice(1, 4).data, others.bytes() / 4 * 3);
          const Tensor y = attend(2, mixed, layer.step(memory, {1, 0, 2}, {1, n, 3}, {700, end, 3}));
          EXPECT_TRUE(same_bits(y.slice(1, n + 1), expected)) << cuts[c - 1];
        }
        arena.reset();
      }
    }
  }
}

TEST_P(MlaTest, RopeAppend) {
  for (const DType dtype : kTypes) {
    for (const Sizes& s : {Sizes{1, 2, 2, 3, 1}, Sizes{3, 7, 6, 33, 1}, Sizes{16, 128, 64, 512, 1}}) {
      SCOPED_TRACE(fmt::format("{} H {} N {} R {} C {}", dtype_name(dtype), s.heads, s.plain, s.turned, s.latent));
      const int64_t t = 5, pages = 4, half = s.turned / 2;
      const Tensor q = memory.normal(dtype, {t, s.heads, s.query()}), kv_a = memory.normal(dtype, {t, s.row()});
      const Tensor norm = memory.normal(dtype, {s.latent}), cos_sin = memory.normal(DType::kF32, {t, 2, half});
      const std::vector<int32_t> slots = {0, 63, 64, 191, 100};
      PagedKv kv;
      kv.slots = memory.ints(slots, {t});
      const Tensor layer = memory.poison(dtype, {pages, kPageTokens, s.row()});
      const Tensor layer_expected = memory.poison(dtype, {pages, kPageTokens, s.row()});
      const Tensor q_expected = memory.poison(dtype, {t, s.heads, s.query()});
      std::memcpy(q_expected.data, q.data, q.bytes());

      const Tensor latents = memory.poison(dtype, {t, s.latent});
      const auto fill = [&]<class T>(T) {
        const auto turn = [&](const T* x, const float* by, T* y) {  // by its definition, pair by pair
          for (int64_t i = 0; i < half; ++i) {
            const float a = ref::get(x[2 * i]), b = ref::get(x[2 * i + 1]), c = by[i], sine = by[half + i];
            y[i] = T(ref::rounded<T>(a * c) - ref::rounded<T>(b * sine));
            y[half + i] = T(ref::rounded<T>(b * c) + ref::rounded<T>(a * sine));
          }
        };
        for (int64_t i = 0; i < t; ++i) {
          for (int64_t h = 0; h < s.heads; ++h) {
            const int64_t place = h * s.query() + s.plain;
            turn(q.row<T>(i) + place, cos_sin.row<float>(i), q_expected.row<T>(i) + place);
          }
          T* to = layer_expected.as<T>() + slots[static_cast<size_t>(i)] * s.row();
          turn(kv_a.row<T>(i) + s.latent, cos_sin.row<float>(i), to + s.latent);
          std::memcpy(latents.row<T>(i), kv_a.row<T>(i), static_cast<size_t>(s.latent) * sizeof(T));
        }
        const Tensor normed = ops::rms_norm(ctx(1), latents, norm, 1e-6F);
        for (int64_t i = 0; i < t; ++i) {
          std::memcpy(layer_expected.as<T>() + slots[static_cast<size_t>(i)] * s.row(), normed.row<T>(i),
                      static_cast<size_t>(s.latent) * sizeof(T));
        }
      };
      dtype == DType::kBF16 ? fill(BFloat16{}) : fill(float{});
      ops::mla_rope_append_(ctx(2), q, kv_a, norm, 1e-6F, cos_sin, layer, kv);
      EXPECT_TRUE(same_bits(q, q_expected));
      EXPECT_TRUE(same_bits(layer, layer_expected));  // and no other slot is touched
      arena.reset();
    }
  }
}

INSTANTIATE_FOR_ISAS(MlaTest);

}  // namespace
}  // namespace saccade
