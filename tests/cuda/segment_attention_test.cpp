#include "cuda/cuda_test.h"
#include "kernels/cuda/attention.h"

namespace saccade {
namespace {

struct Case {
  std::vector<int32_t> lengths;
  int64_t heads, dim;
  float sigma;  // of q and k: 1 spreads the probabilities, 3 gives most to a few keys
  bool turned = true;
};

struct Inputs {
  std::vector<int32_t> ends{0};
  int64_t rows = 0, heads, dim, longest = 0;
  std::vector<BFloat16> qkv;
  std::vector<float> cos_sin;
  bool turned;

  Inputs(const Case& c, uint32_t seed) : heads(c.heads), dim(c.dim), turned(c.turned) {
    for (const int32_t length : c.lengths) {
      rows += length;
      ends.push_back(static_cast<int32_t>(rows));
      longest = std::max<int64_t>(longest, length);
    }
    std::mt19937 rng(seed);
    qkv = normal_bf16(rng, static_cast<size_t>(rows * 3 * heads * dim));
    for (int64_t i = 0; i < rows * 3 * heads * dim; ++i)
      if (i / (heads * dim) % 3 < 2)
        qkv[static_cast<size_t>(i)] = BFloat16(float(qkv[static_cast<size_t>(i)]) * c.sigma);
    std::uniform_real_distribution<float> angle(-4, 4);
    cos_sin.resize(static_cast<size_t>(rows * dim));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < dim / 2; ++j) {
        const float a = angle(rng);
        cos_sin[static_cast<size_t>(r * dim + j)] = std::cos(a);
        cos_sin[static_cast<size_t>(r * dim + dim / 2 + j)] = std::sin(a);
      }
  }

  // Rows [begin, end) as one segment.
  Inputs only(int64_t begin, int64_t end) const {
    Inputs part = *this;
    part.rows = part.longest = end - begin;
    part.ends = {0, static_cast<int32_t>(part.rows)};
    const auto cut = [&](auto& values) {
      const auto row = static_cast<int64_t>(values.size()) / rows;
      values = {values.begin() + begin * row, values.begin() + end * row};
    };
    cut(part.qkv);
    cut(part.cos_sin);
    return part;
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(dim)); }

  std::vector<BFloat16> run() const {
    DeviceMemory memory;
    const Tensor y = memory.poison(DType::kBF16, {rows, heads * dim});
    cuda::segment_attention(nullptr, memory.upload(DType::kBF16, {rows, 3, heads, dim}, qkv.data()),
                            turned ? memory.upload(DType::kF32, {rows, 2, dim / 2}, cos_sin.data()) : Tensor(),
                            memory.upload(DType::kI32, {static_cast<int64_t>(ends.size())}, ends.data()), longest,
                            scale(), y);
    return download<BFloat16>(y);
  }
};

// Head `which * heads + head` of all rows, turned and rounded as the op does: with the same float operations, since
// one step of a large value can change a probability by percents.
std::vector<double> head_of(const Inputs& in, int64_t which, int64_t head) {
  std::vector<double> x(static_cast<size_t>(in.rows * in.dim));
  for (int64_t r = 0; r < in.rows; ++r) {
    const BFloat16* from = in.qkv.data() + ((r * 3 + which) * in.heads + head) * in.dim;
    const float* turn = in.cos_sin.data() + r * in.dim;
    for (int64_t i = 0; i < in.dim; ++i) {
      const int64_t half = in.dim / 2, j = i % half;
      const float a = float(from[j]), b = float(from[j + half]), cos = turn[j], sin = turn[j + half];
      const float turned = i < half ? std::fmaf(a, cos, -(b * sin)) : std::fmaf(b, cos, a * sin);
      x[static_cast<size_t>(r * in.dim + i)] =
          static_cast<double>(in.turned && which < 2 ? float(BFloat16(turned)) : float(from[i]));
    }
  }
  return x;
}

// Each element within what rounding allows: half a step (2^-8) of the result and half a step of each probability,
// weighed by |v|; 2% more for float sums and exponentials.
void expect_close(const Inputs& in, const std::vector<BFloat16>& y) {
  double worst = 0;
  for (int64_t h = 0; h < in.heads; ++h) {
    const auto q = head_of(in, 0, h), k = head_of(in, 1, h), v = head_of(in, 2, h);
    for (size_t s = 0; s + 1 < in.ends.size(); ++s)
      for (int64_t r = in.ends[s]; r < in.ends[s + 1]; ++r) {
        std::vector<double> p;
        double most = -INFINITY, total = 0;
        for (int64_t t = in.ends[s]; t < in.ends[s + 1]; ++t) {
          double score = 0;
          for (int64_t i = 0; i < in.dim; ++i)
            score += q[static_cast<size_t>(r * in.dim + i)] * k[static_cast<size_t>(t * in.dim + i)];
          p.push_back(score * static_cast<double>(in.scale()));
          most = std::max(most, p.back());
        }
        for (double& x : p) total += x = std::exp(x - most);
        for (int64_t i = 0; i < in.dim; ++i) {
          double want = 0, size = 0;
          for (size_t t = 0; t < p.size(); ++t) {
            const double x =
                p[t] / total *
                v[(static_cast<size_t>(in.ends[s]) + t) * static_cast<size_t>(in.dim) + static_cast<size_t>(i)];
            want += x;
            size += std::abs(x);
          }
          const double got = static_cast<double>(float(y[static_cast<size_t>((r * in.heads + h) * in.dim + i)]));
          const double error = std::abs(got - want) / ((std::abs(want) + size) / 256);
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
      }
  }
  EXPECT_LT(worst, 1.02);
}

class SegmentAttention : public CudaTest, public testing::WithParamInterface<Case> {};

TEST_P(SegmentAttention, IsTheSoftmaxOfEachSegment) {
  const Inputs in(GetParam(), 1);
  expect_close(in, in.run());
}

TEST_P(SegmentAttention, DoesNotDependOnOtherSegments) {
  Inputs in(GetParam(), 2);
  const auto y = in.run();
  const auto row = static_cast<size_t>(in.heads * in.dim);
  for (size_t s = 0; s + 1 < in.ends.size(); ++s) {
    const auto begin = static_cast<size_t>(in.ends[s]), rows = static_cast<size_t>(in.ends[s + 1]) - begin;
    if (rows == 0) continue;
    const auto alone = in.only(in.ends[s], in.ends[s + 1]).run();
    EXPECT_EQ(std::memcmp(alone.data(), y.data() + begin * row, rows * row * sizeof(BFloat16)), 0) << "segment " << s;
  }
  // NaN in the first segment stays there.
  const auto begin = static_cast<size_t>(in.ends[1]);
  std::fill_n(in.qkv.begin(), begin * 3 * row, BFloat16(NAN));
  const auto beside = in.run();
  EXPECT_EQ(std::memcmp(beside.data() + begin * row, y.data() + begin * row, (y.size() - begin * row) * 2), 0);
}

INSTANTIATE_TEST_SUITE_P(Tiny, SegmentAttention,
                         testing::Values(Case{{64, 64, 32, 16, 4}, 6, 32, 1}, Case{{200, 77}, 6, 32, 2},
                                         Case{{9}, 1, 8, 1}, Case{{64, 63, 1}, 2, 24, 3}));
INSTANTIATE_TEST_SUITE_P(Windows, SegmentAttention,
                         testing::Values(Case{{64, 64, 64, 48, 64, 16, 4}, 16, 80, 1},
                                         Case{{5, 63, 1, 0, 64}, 3, 80, 3}, Case{{64, 40}, 2, 72, 2, false},
                                         Case{{33, 64}, 2, 128, 2}));
INSTANTIATE_TEST_SUITE_P(Long, SegmentAttention,
                         testing::Values(Case{{128}, 1, 80, 1}, Case{{256, 65}, 2, 80, 1}, Case{{720, 720}, 2, 80, 2},
                                         Case{{1000, 3, 64, 399, 0, 129}, 3, 80, 3}, Case{{1300}, 1, 80, 4},
                                         Case{{300, 129}, 2, 80, 2, false}, Case{{729}, 2, 72, 1, false},
                                         Case{{500, 77, 191}, 2, 128, 1}, Case{{310}, 1, 104, 2}));
// More items than CTAs.
INSTANTIATE_TEST_SUITE_P(Many, SegmentAttention, testing::Values(Case{std::vector<int32_t>(13, 130), 16, 80, 2}));

}  // namespace
}  // namespace saccade
