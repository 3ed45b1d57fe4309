// decode_chained against a plain decoder of one row with the same roundings, and rows alone against rows of batches.
#include <algorithm>
#include <numeric>

#include "cuda/cuda_test.h"
#include "kernels/cpu/reference.h"
#include "kernels/cuda/decode.h"

namespace saccade {
namespace {

namespace reference = cpu::reference;
using Values = std::vector<BFloat16>;

size_t at(int64_t i) { return static_cast<size_t>(i); }

struct Shape {
  int64_t width, ffn, heads, kv_heads, head_dim, vocabulary, depth;
  int64_t attended() const { return heads * head_dim; }
  int64_t qkv() const { return (heads + 2 * kv_heads) * head_dim; }
};
constexpr Shape kTiny = {256, 512, 4, 2, 64, 800, 2};
constexpr Shape kOddGroup = {896, 1216, 7, 1, 128, 1000, 2};
constexpr Shape kLong = {512, 11008, 4, 2, 128, 40000, 1};  // rings of matmuls turn many times
constexpr Shape kWideGroup = {192, 320, 12, 1, 64, 72, 1};

struct HostLayer {
  Values attention_norm, mlp_norm, qkv, bias, output, gate_up, down;
};
struct Sequence {
  Values h;
  std::vector<float> cos_sin;
  std::vector<Values> keys, values;  // of each layer: [K, length, Dh] in plain order; the newest token is written here
  int64_t length = 0;
  std::vector<int32_t> pages;
};

Values product(const Values& x, const Values& w, const Values* bias = nullptr) {
  Values y(w.size() / x.size());
  for (size_t n = 0; n < y.size(); ++n) {
    const float sum = reference::dot(x.data(), w.data() + n * x.size(), static_cast<int64_t>(x.size()));
    y[n] = BFloat16(bias != nullptr ? sum + float((*bias)[n]) : sum);
  }
  return y;
}
void add(Values& h, const Values& y) {
  for (size_t i = 0; i < h.size(); ++i) h[i] = BFloat16(float(h[i]) + float(y[i]));
}

class Model {
 public:
  Model(const Shape& shape, std::vector<int64_t> lengths) : s(shape), rng_(shape.width + lengths.size()) {
    const auto weight = [&](int64_t n, int64_t k) {
      return normal_bf16(rng_, at(n * k), 1 / std::sqrt(static_cast<float>(k)));
    };
    const auto norm = [&] {
      Values w = normal_bf16(rng_, at(s.width), 0.2f);
      for (auto& v : w) v = BFloat16(1 + float(v));
      return w;
    };
    for (int64_t i = 0; i < s.depth; ++i)
      layers_.push_back({norm(), norm(), weight(s.qkv(), s.width), normal_bf16(rng_, at(s.qkv())),
                         weight(s.width, s.attended()), weight(2 * s.ffn, s.width), weight(s.width, s.ffn)});
    norm_ = norm();
    head_ = weight(s.vocabulary, s.width);
    for (const int64_t length : lengths) add_sequence(length);
    std::shuffle(free_pages_.begin(), free_pages_.end(), rng_);
    for (Sequence& q : sequences)
      for (int64_t i = 0; i < q.length; i += cuda::kKvPageTokens) {
        q.pages.push_back(free_pages_.back());
        free_pages_.pop_back();
        max_pages_ = std::max(max_pages_, static_cast<int64_t>(q.pages.size()));
      }
    upload();
  }

  struct Result {
    std::vector<float> logits;
    Values h;
  };
  // The sequences `rows` as one step.
  Result run(const std::vector<size_t>& rows) {
    DeviceMemory memory;
    const auto count = static_cast<int64_t>(rows.size());
    Values h;
    std::vector<float> cos_sin;
    std::vector<int32_t> slots, lengths, table;
    for (const size_t r : rows) {
      const Sequence& q = sequences[r];
      h.insert(h.end(), q.h.begin(), q.h.end());
      cos_sin.insert(cos_sin.end(), q.cos_sin.begin(), q.cos_sin.end());
      slots.push_back(q.pages.back() * 64 + static_cast<int32_t>((q.length - 1) % 64));
      lengths.push_back(static_cast<int32_t>(q.length));
      std::vector<int32_t> pages = q.pages;
      pages.resize(at(max_pages_), -1);
      table.insert(table.end(), pages.begin(), pages.end());
    }
    cuda::DecodeStep step;
    step.h = memory.upload(DType::kBF16, {count, s.width}, h.data());
    step.cos_sin = memory.upload(DType::kF32, {count, 2, s.head_dim / 2}, cos_sin.data());
    step.slots = memory.upload(DType::kI32, {count}, slots.data());
    step.kv.kv_lens = memory.upload(DType::kI32, {count}, lengths.data());
    step.kv.page_table = memory.upload(DType::kI32, {count, max_pages_}, table.data());
    step.kv.longest_q = 1;
    step.kv.longest_kv = *std::max_element(lengths.begin(), lengths.end());
    step.logits = memory.poison(DType::kF32, {count, s.vocabulary});
    const auto bytes = static_cast<int64_t>(cuda::chained_workspace_bytes(decoder_, count, max_pages_));
    step.workspace = memory.poison(DType::kF32, {bytes / 4});
    EXPECT_TRUE(cuda::can_decode_chained(decoder_, count));
    cuda::decode_chained(nullptr, decoder_, step);
    return {download<float>(step.logits), download<BFloat16>(step.h)};
  }

  // What row of sequence q should give; writes its newest keys and values.
  Result expected(Sequence& q) const {
    Values h = q.h, x(at(s.width));
    const float scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    for (int64_t i = 0; i < s.depth; ++i) {
      const HostLayer& layer = layers_[at(i)];
      reference::rms_norm(h.data(), layer.attention_norm.data(), x.data(), s.width, kEps);
      Values qkv = product(x, layer.qkv, &layer.bias), turned(at(s.head_dim)), attended(at(s.attended()));
      for (int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
        BFloat16* values = qkv.data() + head * s.head_dim;
        reference::rope<true>(values, q.cos_sin.data(), turned.data(), s.head_dim);
        std::copy(turned.begin(), turned.end(), values);
      }
      Values& keys = q.keys[at(i)];
      Values& values = q.values[at(i)];
      for (int64_t k = 0; k < s.kv_heads; ++k) {
        const BFloat16* from = qkv.data() + (s.heads + k) * s.head_dim;
        const int64_t to = ((k + 1) * q.length - 1) * s.head_dim;
        std::copy_n(from, s.head_dim, keys.data() + to);
        std::copy_n(from + s.kv_heads * s.head_dim, s.head_dim, values.data() + to);
      }
      std::vector<float> scores(at(q.length));
      for (int64_t head = 0; head < s.heads; ++head) {
        const int64_t first = head / (s.heads / s.kv_heads) * q.length;
        const auto row = [&](const Values& of) {
          return [&of, first, this](int64_t j) { return of.data() + (first + j) * s.head_dim; };
        };
        reference::attend(qkv.data() + head * s.head_dim, row(keys), row(values), q.length, s.head_dim, s.head_dim,
                          scale, scores.data(), attended.data() + head * s.head_dim);
      }
      add(h, product(attended, layer.output));
      reference::rms_norm(h.data(), layer.mlp_norm.data(), x.data(), s.width, kEps);
      const Values gate_up = product(x, layer.gate_up);
      Values activated(at(s.ffn));
      for (int64_t f = 0; f < s.ffn; ++f) {
        const BFloat16 silu(reference::silu(float(gate_up[at(f)])));
        activated[at(f)] = BFloat16(float(silu) * float(gate_up[at(s.ffn + f)]));
      }
      add(h, product(activated, layer.down));
    }
    reference::rms_norm(h.data(), norm_.data(), x.data(), s.width, kEps);
    const Values logits = product(x, head_);
    return {{logits.begin(), logits.end()}, h};
  }

  // The newest key and value of a sequence in the cache, [2, K, Dh] in plain order.
  Values newest(const Sequence& q, int64_t layer) const {
    const Values cache = download<BFloat16>(kv_[at(layer)]);
    Values out;
    for (int value = 0; value < 2; ++value)
      for (int64_t k = 0; k < s.kv_heads; ++k)
        for (int64_t d = 0; d < s.head_dim; ++d) out.push_back(cache[at(place(q, q.length - 1, value, k, d))]);
    return out;
  }

  Shape s;
  std::vector<Sequence> sequences;

 private:
  static constexpr float kEps = 1e-6f;

  void add_sequence(int64_t length) {
    Sequence q;
    q.length = length;
    q.h = normal_bf16(rng_, at(s.width));
    std::uniform_real_distribution<float> angle(-3, 3);
    q.cos_sin.resize(at(s.head_dim));
    for (int64_t i = 0; i < s.head_dim / 2; ++i) {
      const float a = angle(rng_);
      q.cos_sin[at(i)] = float(BFloat16(std::cos(a)));
      q.cos_sin[at(s.head_dim / 2 + i)] = float(BFloat16(std::sin(a)));
    }
    for (int64_t i = 0; i < s.depth; ++i) {
      q.keys.push_back(normal_bf16(rng_, at(s.kv_heads * length * s.head_dim)));
      q.values.push_back(normal_bf16(rng_, at(s.kv_heads * length * s.head_dim)));
    }
    for (int64_t i = 0; i < length; i += 64) free_pages_.push_back(static_cast<int32_t>(free_pages_.size()));
    sequences.push_back(std::move(q));
  }

  int64_t place(const Sequence& q, int64_t token, int value, int64_t kv_head, int64_t d) const {
    const int64_t half = s.head_dim / 2, place = value ? d : cuda::paired_row(d % half, d >= half);
    return ((q.pages[at(token / 64)] * 2 + value) * s.kv_heads + kv_head) * 64 * s.head_dim +
           cuda::kv_offset(token % 64, place);
  }

  Weight strips(const Values& w, int64_t n, Weight::RowOrder order = Weight::RowOrder::kPlain,
                const std::vector<int64_t>& places = {}, const Values& bias = {}) {
    Weight weight = strips_of_host(memory_, w, n, static_cast<int64_t>(w.size()) / n, places);
    weight.order = order;
    if (!bias.empty()) {
      Values ordered(bias.size());
      for (size_t i = 0; i < bias.size(); ++i) ordered[at(places[i])] = bias[i];
      weight.bias[0] = memory_.upload(DType::kBF16, {n}, ordered.data());
    }
    return weight;
  }

  void upload() {
    const auto vector = [&](const Values& v) { return memory_.upload(DType::kBF16, {s.width}, v.data()); };
    const int64_t half = s.head_dim / 2;
    std::vector<int64_t> rope, pairs;
    for (int64_t n = 0; n < s.qkv(); ++n) {
      const int64_t head = n / s.head_dim, d = n % s.head_dim;
      rope.push_back(head < s.heads + s.kv_heads ? head * s.head_dim + cuda::paired_row(d % half, d >= half) : n);
    }
    for (int64_t n = 0; n < 2 * s.ffn; ++n) pairs.push_back(cuda::paired_row(n % s.ffn, n >= s.ffn));
    int64_t pages = 0;
    for (const Sequence& q : sequences) pages += static_cast<int64_t>(q.pages.size());
    using Order = Weight::RowOrder;
    for (int64_t i = 0; i < s.depth; ++i) {
      const HostLayer& l = layers_[at(i)];
      device_layers_.push_back({vector(l.attention_norm), vector(l.mlp_norm),
                                strips(l.qkv, s.qkv(), Order::kRope, rope, l.bias), strips(l.output, s.width),
                                strips(l.gate_up, 2 * s.ffn, Order::kGateUp, pairs), strips(l.down, s.width)});
      Values cache(at(pages * 2 * s.kv_heads * 64 * s.head_dim));
      std::memset(static_cast<void*>(cache.data()), 0xff, cache.size() * sizeof(BFloat16));  // NaN where nothing is
      for (const Sequence& q : sequences)
        for (int64_t t = 0; t + 1 < q.length; ++t)
          for (int64_t k = 0; k < s.kv_heads; ++k)
            for (int64_t d = 0; d < s.head_dim; ++d) {
              const size_t from = at((k * q.length + t) * s.head_dim + d);
              cache[at(place(q, t, 0, k, d))] = q.keys[at(i)][from];
              cache[at(place(q, t, 1, k, d))] = q.values[at(i)][from];
            }
      kv_.push_back(memory_.upload(DType::kBF16, {pages, 2, s.kv_heads, 64, s.head_dim}, cache.data()));
    }
    decoder_ = {device_layers_.data(),      kv_.data(), s.depth, s.heads, s.kv_heads, s.head_dim, kEps, vector(norm_),
                strips(head_, s.vocabulary)};
  }

  std::mt19937 rng_;
  std::vector<HostLayer> layers_;
  Values norm_, head_;
  std::vector<int32_t> free_pages_;
  int64_t max_pages_ = 3;
  DeviceMemory memory_;
  std::vector<cuda::DecoderLayer> device_layers_;
  std::vector<Tensor> kv_;
  cuda::Decoder decoder_;
};

std::vector<double> doubles(const Values& v) {
  std::vector<double> out;
  for (const BFloat16 x : v) out.push_back(static_cast<double>(float(x)));
  return out;
}

std::vector<size_t> first_rows(size_t count) {
  std::vector<size_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

std::vector<int64_t> lengths(size_t count) {
  std::vector<int64_t> n = {1, 63, 64, 65, 128, 129, 300, 5, 1061};
  std::mt19937 rng(7);
  while (n.size() < count) n.push_back(1 + static_cast<int64_t>(rng() % 400));
  n.resize(count);
  return n;
}

class DecodeChained : public CudaTest {
 protected:
  // Sums in another order turn a few roundings to bf16 the other way, each by 2^-8 of a value at most, and weights of
  // the values are rounded to bf16: about sqrt(20 roundings) * 2^-9, less what averages out.
  static constexpr double kTolerance = 0.01;

  static void check(const Shape& shape, std::vector<int64_t> lengths) {
    Model model(shape, lengths);
    const Model::Result got = model.run(first_rows(lengths.size()));
    double worst_h = 0, worst_logits = 0, worst_kv = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
      Sequence& q = model.sequences[b];
      const Model::Result want = model.expected(q);
      const Values h(got.h.begin() + shape.width * static_cast<int64_t>(b),
                     got.h.begin() + shape.width * static_cast<int64_t>(b + 1));
      const auto logits = got.logits.begin() + shape.vocabulary * static_cast<int64_t>(b);
      worst_h = std::max(worst_h, relative_error(doubles(h), doubles(want.h)));
      worst_logits = std::max(
          worst_logits, relative_error({logits, logits + shape.vocabulary}, {want.logits.begin(), want.logits.end()}));
      for (int64_t i = 0; i < shape.depth; ++i) {
        Values kv;
        for (const Values* of : {&q.keys[at(i)], &q.values[at(i)]})
          for (int64_t k = 0; k < shape.kv_heads; ++k) {
            const auto last = of->begin() + ((k + 1) * q.length - 1) * shape.head_dim;
            kv.insert(kv.end(), last, last + shape.head_dim);
          }
        worst_kv = std::max(worst_kv, relative_error(doubles(model.newest(q, i)), doubles(kv)));
      }
    }
    EXPECT_LT(worst_h, kTolerance);
    EXPECT_LT(worst_logits, kTolerance);
    EXPECT_LT(worst_kv, kTolerance);
    for (const float v : got.logits) ASSERT_EQ(v, float(BFloat16(v)));
    RecordProperty("errors", std::to_string(worst_h) + " " + std::to_string(worst_logits));
    std::printf("    errors: h %.5f, logits %.5f, cache %.5f\n", worst_h, worst_logits, worst_kv);
  }
};

TEST_F(DecodeChained, OneRow) { check(kTiny, {300}); }
TEST_F(DecodeChained, FirstToken) { check(kTiny, {1, 1}); }
TEST_F(DecodeChained, TinyModel) { check(kTiny, lengths(33)); }
TEST_F(DecodeChained, SevenHeadsOfAGroup) { check(kOddGroup, lengths(19)); }
TEST_F(DecodeChained, TwelveHeadsOfAGroup) { check(kWideGroup, lengths(64)); }
TEST_F(DecodeChained, LongMatrices) {
  for (const size_t rows : {2, 17, 33}) check(kLong, lengths(rows));
}
TEST_F(DecodeChained, LongCache) { check(kTiny, {9000, 20, 2049}); }

// CTAs hand values over without fences (decode_batch.cuh), so one that is read too early would show now and then.
TEST_F(DecodeChained, TheSameBitsEveryTime) {
  for (const Shape& shape : {kLong, kOddGroup}) {
    Model model(shape, lengths(64));
    const Model::Result first = model.run(first_rows(64));
    for (int i = 0; i < 200; ++i) {
      const Model::Result again = model.run(first_rows(64));
      ASSERT_EQ(0, std::memcmp(again.h.data(), first.h.data(), 2 * first.h.size())) << "run " << i;
      ASSERT_EQ(0, std::memcmp(again.logits.data(), first.logits.data(), 4 * first.logits.size())) << "run " << i;
    }
  }
}

TEST_F(DecodeChained, ARowDoesNotDependOnItsBatch) {
  for (const Shape& shape : {kTiny, kOddGroup}) {
    Model model(shape, lengths(64));
    std::mt19937 rng(11);
    std::vector<Model::Result> alone(64);
    for (size_t b = 0; b < 64; ++b) alone[b] = model.run({b});
    for (const size_t count : {2, 9, 33, 64, 64}) {
      std::vector<size_t> rows = first_rows(64);
      std::shuffle(rows.begin(), rows.end(), rng);
      rows.resize(count);
      const Model::Result got = model.run(rows);
      for (size_t b = 0; b < count; ++b) {
        const Model::Result& want = alone[rows[b]];
        ASSERT_EQ(0, std::memcmp(got.h.data() + b * want.h.size(), want.h.data(), 2 * want.h.size())) << b << count;
        ASSERT_EQ(0,
                  std::memcmp(got.logits.data() + b * want.logits.size(), want.logits.data(), 4 * want.logits.size()))
            << b << " of " << count;
      }
    }
  }
}

TEST_F(DecodeChained, RefusesWhatItHasNoKernelsFor) {
  Model model(kWideGroup, {3});
  cuda::Decoder d;
  cuda::DecoderLayer layer;
  d.layers = &layer;
  d.depth = 1;
  d.heads = 4;
  d.kv_heads = 2;
  d.head_dim = 80;
  EXPECT_FALSE(cuda::can_decode_chained(d, 1));
  d.head_dim = 64;
  EXPECT_FALSE(cuda::can_decode_chained(d, 65));
  EXPECT_FALSE(cuda::can_decode_chained(d, 0));
}

}  // namespace
}  // namespace saccade
