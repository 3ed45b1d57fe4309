#include <numeric>

#include "cuda/cuda_test.h"
#include "kernels/cuda/attention.h"

namespace saccade {
namespace {

constexpr int64_t kPage = cuda::kKvPageTokens;

struct Shape {
  int64_t heads, kv_heads, head_dim;
};
struct Rows {
  int64_t rows, past;  // tokens of this step, and those cached before
  int64_t length() const { return rows + past; }
};

// Keys and values of sequences in pages of random order. Everything that no token owns is NaN.
class Cache {
 public:
  Cache(std::mt19937& rng, const Shape& shape, const std::vector<int64_t>& lengths) : shape_(shape), lengths_(lengths) {
    max_pages_ = (*std::max_element(lengths.begin(), lengths.end()) + kPage - 1) / kPage + 1;
    pages_ = static_cast<int64_t>(lengths.size()) * max_pages_;
    table_.resize(static_cast<size_t>(pages_));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), rng);
    values_.assign(static_cast<size_t>(pages_ * 2 * shape.kv_heads * kPage * shape.head_dim), BFloat16(NAN));
    std::normal_distribution<float> normal;
    for (size_t b = 0; b < lengths.size(); ++b)
      for (int64_t token = 0; token < lengths[b]; ++token)
        for (int which = 0; which < 2; ++which)
          for (int64_t head = 0; head < shape.kv_heads; ++head)
            for (int64_t place = 0; place < shape.head_dim; ++place)
              values_[at(b, token, which, head, place)] = BFloat16(normal(rng));
  }
  double value(size_t b, int64_t token, int which, int64_t head, int64_t place) const {
    return static_cast<double>(float(values_[at(b, token, which, head, place)]));
  }
  const Shape& shape() const { return shape_; }
  size_t sequences() const { return lengths_.size(); }
  int64_t max_pages() const { return max_pages_; }
  const std::vector<int32_t>& table() const { return table_; }

  // With NaN in the places of tokens from lengths[b] on.
  Tensor upload(DeviceMemory& memory, const std::vector<int64_t>& lengths) const {
    std::vector<BFloat16> values = values_;
    for (size_t b = 0; b < lengths.size(); ++b)
      for (int64_t token = lengths[b]; token < lengths_[b]; ++token)
        for (int which = 0; which < 2; ++which)
          for (int64_t head = 0; head < shape_.kv_heads; ++head)
            for (int64_t place = 0; place < shape_.head_dim; ++place)
              values[at(b, token, which, head, place)] = BFloat16(NAN);
    return memory.upload(DType::kBF16, {pages_, 2, shape_.kv_heads, kPage, shape_.head_dim}, values.data());
  }

 private:
  size_t at(size_t b, int64_t token, int which, int64_t head, int64_t place) const {
    const int64_t page = table_[b * static_cast<size_t>(max_pages_) + static_cast<size_t>(token / kPage)];
    return static_cast<size_t>(((page * 2 + which) * shape_.kv_heads + head) * kPage * shape_.head_dim +
                               cuda::kv_offset(token % kPage, place));
  }
  Shape shape_;
  std::vector<int64_t> lengths_;
  int64_t max_pages_ = 0, pages_ = 0;
  std::vector<int32_t> table_;
  std::vector<BFloat16> values_;
};

float scale_of(const Shape& shape) { return 1 / std::sqrt(static_cast<float>(shape.head_dim)); }

// Rows of q in the order of `step`; sequence b of the step is sequence[b] of the cache.
std::vector<BFloat16> run(const Cache& cache, const std::vector<BFloat16>& q, const std::vector<Rows>& step,
                          const std::vector<size_t>& sequence) {
  const Shape& shape = cache.shape();
  DeviceMemory memory;
  std::vector<int32_t> offsets = {0}, lengths, table;
  std::vector<int64_t> cached(cache.sequences());
  cuda::Paged kv;
  for (size_t b = 0; b < step.size(); ++b) {
    offsets.push_back(offsets.back() + static_cast<int32_t>(step[b].rows));
    lengths.push_back(static_cast<int32_t>(step[b].length()));
    const auto pages = cache.table().begin() + static_cast<int64_t>(sequence[b]) * cache.max_pages();
    table.insert(table.end(), pages, pages + cache.max_pages());
    cached[sequence[b]] = std::max(cached[sequence[b]], step[b].length());
    kv.longest_q = std::max(kv.longest_q, step[b].rows);
    kv.longest_kv = std::max(kv.longest_kv, step[b].length());
  }
  const auto count = static_cast<int64_t>(step.size()), rows = static_cast<int64_t>(offsets.back());
  kv.q_offsets = memory.upload(DType::kI32, {count + 1}, offsets.data());
  kv.kv_lens = memory.upload(DType::kI32, {count}, lengths.data());
  kv.page_table = memory.upload(DType::kI32, {count, cache.max_pages()}, table.data());
  const Tensor y = memory.poison(DType::kBF16, {rows, shape.heads * shape.head_dim});
  cuda::paged_attention(nullptr, memory.upload(DType::kBF16, {rows, shape.heads, shape.head_dim}, q.data()),
                        cache.upload(memory, cached), kv, scale_of(shape), y);
  return download<BFloat16>(y);
}

std::vector<size_t> first_sequences(size_t count) {
  std::vector<size_t> sequence(count);
  std::iota(sequence.begin(), sequence.end(), size_t{0});
  return sequence;
}

// Of every element: two roundings to bf16 (unit 2^-8), of the weights and of the result.
void expect_attention(const Cache& cache, const std::vector<BFloat16>& q, const std::vector<Rows>& step,
                      const std::vector<BFloat16>& y) {
  const Shape& shape = cache.shape();
  const int64_t group = shape.heads / shape.kv_heads;
  int64_t row = 0;
  double worst = 0;
  for (size_t b = 0; b < step.size(); ++b)
    for (int64_t i = 0; i < step[b].rows; ++i, ++row)
      for (int64_t head = 0; head < shape.heads; ++head) {
        const size_t first = static_cast<size_t>((row * shape.heads + head) * shape.head_dim);
        const int64_t keys = step[b].past + i + 1;
        std::vector<double> weights(static_cast<size_t>(keys));
        for (int64_t key = 0; key < keys; ++key)
          for (int64_t d = 0; d < shape.head_dim; ++d)
            weights[static_cast<size_t>(key)] += static_cast<double>(float(q[first + static_cast<size_t>(d)])) *
                                                 cache.value(b, key, 0, head / group, d) *
                                                 static_cast<double>(scale_of(shape));
        const double top = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& w : weights) sum += w = std::exp(w - top);
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          double expected = 0, magnitude = 0;
          for (int64_t key = 0; key < keys; ++key) {
            const double term = weights[static_cast<size_t>(key)] / sum * cache.value(b, key, 1, head / group, d);
            expected += term;
            magnitude += std::abs(term);
          }
          const auto got = static_cast<double>(float(y[first + static_cast<size_t>(d)]));
          const double error = std::abs(got - expected) / (std::abs(expected) + magnitude);
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
      }
  EXPECT_LE(worst, 1.02 / 256);
}

void check_against_double(uint32_t seed, const Shape& shape, const std::vector<Rows>& step, float sigma = 1) {
  std::mt19937 rng(seed);
  std::vector<int64_t> lengths;
  size_t rows = 0;
  for (const Rows& r : step) {
    lengths.push_back(r.length());
    rows += static_cast<size_t>(r.rows);
  }
  const Cache cache(rng, shape, lengths);
  const auto q = normal_bf16(rng, rows * static_cast<size_t>(shape.heads * shape.head_dim), sigma);
  expect_attention(cache, q, step, run(cache, q, step, first_sequences(step.size())));
}

class PagedAttention : public CudaTest {
 protected:
  const uint32_t seed_ = std::random_device()();
  const testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

TEST_F(PagedAttention, OneSequenceOfEveryLengthClass) {
  for (const int64_t rows : {1, 2, 8, 9, 17, 63, 64, 65, 130})
    check_against_double(seed_ + static_cast<uint32_t>(rows), {16, 2, 128}, {{rows, 0}});
}
TEST_F(PagedAttention, GroupThatDoesNotDivideATile) { check_against_double(seed_, {28, 4, 128}, {{150, 0}, {37, 91}}); }
TEST_F(PagedAttention, OneHeadForEachKey) { check_against_double(seed_, {3, 3, 128}, {{129, 0}, {5, 200}}); }
TEST_F(PagedAttention, TinyHeads) { check_against_double(seed_, {4, 2, 64}, {{150, 0}, {1, 63}, {1, 64}, {33, 40}}); }
TEST_F(PagedAttention, SequencesOfAllKinds) {
  check_against_double(seed_, {16, 2, 128},
                       {{1, 300}, {70, 0}, {0, 50}, {1, 0}, {64, 64}, {17, 191}, {1, 63}, {1, 64}});
}
TEST_F(PagedAttention, PagesMoreThanTheRingHolds) { check_against_double(seed_, {8, 2, 128}, {{40, 1500}}); }
// Long enough that row tiles of very different lengths may share a block.
TEST_F(PagedAttention, LongPrompt) { check_against_double(seed_, {16, 2, 128}, {{600, 0}}); }
TEST_F(PagedAttention, ScoresOfWideRange) { check_against_double(seed_, {16, 2, 128}, {{140, 500}}, 12); }
TEST_F(PagedAttention, ManyDecodes) {
  std::mt19937 rng(seed_);
  std::vector<Rows> step;
  for (int b = 0; b < 64; ++b) step.push_back({1, static_cast<int64_t>(rng() % 700)});
  check_against_double(seed_, {8, 2, 128}, step);
}

// The bits of a row: whatever the chunks of a prompt, and whatever stands beside it.
class PagedAttentionBits : public PagedAttention, public testing::WithParamInterface<Shape> {};

TEST_P(PagedAttentionBits, DoNotDependOnChunks) {
  constexpr int64_t kLength = 333;
  std::mt19937 rng(seed_);
  const Shape& shape = GetParam();
  const Cache cache(rng, shape, {kLength});
  const auto width = static_cast<size_t>(shape.heads * shape.head_dim);
  const auto q = normal_bf16(rng, kLength * width, 4);
  const auto whole = run(cache, q, {{kLength, 0}}, {0});
  for (const int64_t chunk : {1, 17, 64, 100}) {
    std::vector<BFloat16> y;
    for (int64_t past = 0; past < kLength; past += chunk) {
      const int64_t rows = std::min(chunk, kLength - past);
      const auto first = q.begin() + past * static_cast<int64_t>(width);
      const auto part = run(cache, {first, first + rows * static_cast<int64_t>(width)}, {{rows, past}}, {0});
      y.insert(y.end(), part.begin(), part.end());
    }
    ASSERT_EQ(y.size(), whole.size());
    EXPECT_EQ(std::memcmp(y.data(), whole.data(), y.size() * sizeof(BFloat16)), 0) << "chunks of " << chunk;
  }
}

TEST_P(PagedAttentionBits, DoNotDependOnOtherSequences) {
  std::mt19937 rng(seed_);
  const Shape& shape = GetParam();
  const std::vector<Rows> kinds = {{200, 0}, {1, 500}, {77, 120}, {130, 64}};
  std::vector<int64_t> lengths;
  for (const Rows& r : kinds) lengths.push_back(r.length());
  const Cache cache(rng, shape, lengths);
  const auto width = static_cast<size_t>(shape.heads * shape.head_dim);
  std::vector<std::vector<BFloat16>> q, alone;
  for (size_t b = 0; b < kinds.size(); ++b) {
    q.push_back(normal_bf16(rng, static_cast<size_t>(kinds[b].rows) * width, 4));
    alone.push_back(run(cache, q[b], {kinds[b]}, {b}));
  }
  std::vector<Rows> step;
  std::vector<size_t> sequence;
  std::vector<BFloat16> rows, expected;
  for (int i = 0; i < 40; ++i) {
    const size_t b = rng() % kinds.size();
    step.push_back(kinds[b]);
    sequence.push_back(b);
    rows.insert(rows.end(), q[b].begin(), q[b].end());
    expected.insert(expected.end(), alone[b].begin(), alone[b].end());
  }
  const auto together = run(cache, rows, step, sequence);
  ASSERT_EQ(together.size(), expected.size());
  EXPECT_EQ(std::memcmp(together.data(), expected.data(), expected.size() * sizeof(BFloat16)), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PagedAttentionBits,
                         testing::Values(Shape{16, 2, 128}, Shape{28, 4, 128}, Shape{4, 2, 64}));

}  // namespace
}  // namespace saccade
