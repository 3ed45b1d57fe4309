#include "weights/weights.h"

#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "weights/safetensors_maker.h"

namespace saccade {
namespace {

using test::error_of;
using test::Folder;
using test::raw;
using test::safetensors;
using testing::HasSubstr;

struct Given {
  std::string name, dtype, shape, data;
};

// `pad` bytes of a first tensor move all others to an odd address.
std::string file_of(const std::vector<Given>& tensors, size_t pad = 0) {
  std::string header, data(pad, '\0');
  if (pad)
    header = R"("pad":{"dtype":"U8","shape":[)" + std::to_string(pad) + R"(],"data_offsets":[0,)" +
             std::to_string(pad) + "]}";
  for (const Given& t : tensors) {
    header += (header.empty() ? "\"" : ",\"") + t.name + R"(":{"dtype":")" + t.dtype + R"(","shape":)" + t.shape +
              R"(,"data_offsets":[)" + std::to_string(data.size()) + "," + std::to_string(data.size() + t.data.size()) +
              "]}";
    data += t.data;
  }
  header = "{" + header + "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  return safetensors(header, data);
}

Weights weights_of(const Folder& folder, DType dtype, std::vector<std::pair<std::string, std::string>> aliases = {}) {
  return Weights(open_checkpoint(folder.path()), dtype, std::move(aliases));
}

template <class T>
std::vector<float> floats(const Tensor& tensor) {
  std::vector<float> values;
  for (int64_t i = 0; i < tensor.numel(); ++i) values.push_back(static_cast<float>(tensor.as<T>()[i]));
  return values;
}

const std::string kBf16 = raw<uint16_t>({0x3f80, 0xc000, 0x4040, 0x0001, 0x7f80, 0x3f81});
const std::vector<float> kBf16Values = {1, -2, 3, 0x1p-133f, INFINITY, 1.0078125f};

TEST(Checkpoint, FolderWithoutWeights) {
  Folder folder;
  EXPECT_THAT(
      error_of([&] { open_checkpoint(folder.path()); }),
      testing::AllOf(HasSubstr(folder.path()), HasSubstr("no model.safetensors or model.safetensors.index.json")));
  folder.write("pytorch_model.bin", "");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }), HasSubstr("convert them to safetensors"));
}

TEST(Checkpoint, Shards) {
  Folder folder;
  folder.write("one.safetensors", file_of({{"a", "BF16", "[6]", kBf16}}));
  folder.write("two.safetensors",
               file_of({{"b", "F32", "[1]", raw<float>({5})}, {"c", "F32", "[1]", raw<float>({6})}}));
  const auto index = [&](const std::string& map) {
    folder.write("model.safetensors.index.json", R"({"metadata":{},"weight_map":{)" + map + "}}");
  };
  index(R"("b":"two.safetensors","a":"one.safetensors","c":"two.safetensors")");
  EXPECT_EQ(open_checkpoint(folder.path())->list().size(), 3u);
  Weights weights = weights_of(folder, DType::kF32);
  EXPECT_THAT(floats<float>(weights.tensor("c", {1})), testing::ElementsAre(6));
  EXPECT_EQ(floats<float>(weights.tensor("a", {6})), kBf16Values);

  index(R"("a":"one.safetensors","b":"gone.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }),
              testing::AllOf(HasSubstr("\"b\": shard "), HasSubstr("gone.safetensors is missing")));
  index(R"("a":"one.safetensors","d":"two.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }), HasSubstr("weight_map: \"d\" is not in "));
  index(R"("a":"two.safetensors","b":"one.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }),
              testing::AllOf(HasSubstr("expected \"a\" in "), HasSubstr("two.safetensors, found in ")));
  folder.write("one.safetensors", file_of({{"b", "BF16", "[6]", kBf16}}));
  index(R"("b":"one.safetensors","c":"two.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }), HasSubstr("tensor \"b\" stands in "));
  index(R"("b":"../one.safetensors")");
  EXPECT_THAT(error_of([&] { open_checkpoint(folder.path()); }), HasSubstr("without a path"));
}

TEST(Weights, MatricesStayMappedAndVectorsTakeTheModelsDType) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"m.weight", "BF16", "[2,3]", kBf16}, {"v", "BF16", "[6]", kBf16}}));
  Weights bf16 = weights_of(folder, DType::kBF16);
  EXPECT_EQ(floats<BFloat16>(bf16.table("m.weight", {2, 3})), kBf16Values);
  EXPECT_EQ(floats<BFloat16>(bf16.tensor("v", {6})), kBf16Values);
  EXPECT_EQ(bf16.owned_bytes(), 0u);

  Weights f32 = weights_of(folder, DType::kF32);
  EXPECT_EQ(f32.linear({{"m", 2}}, 3, false).data[0].dtype, DType::kBF16);
  EXPECT_EQ(f32.owned_bytes(), 0u);
  EXPECT_EQ(floats<float>(f32.tensor("v", {6})), kBf16Values);
  EXPECT_EQ(f32.owned_bytes(), 24u);
}

TEST(Weights, F32RoundsToNearestEvenForBf16) {
  Folder folder;
  const std::vector<float> values = {1.00390625f, 1.01171875f, 1.00390637f, -3.0e38f, 1e-40f, 0.1f};
  folder.write("model.safetensors", file_of({{"m", "F32", "[2,3]", raw(values)}}));
  Weights f32 = weights_of(folder, DType::kF32);
  EXPECT_EQ(floats<float>(f32.table("m", {2, 3})), values);
  EXPECT_EQ(f32.owned_bytes(), 0u);
  Weights bf16 = weights_of(folder, DType::kBF16);
  const Tensor rounded = bf16.table("m", {2, 3});
  const uint16_t expected[] = {0x3f80, 0x3f82, 0x3f81, 0xff62, 0x0001, 0x3dcd};
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(rounded.as<BFloat16>()[i].bits, expected[i]) << values[i];
}

TEST(Weights, F16IsExactInF32) {
  Folder folder;
  const std::string data = raw<uint16_t>({0x3c00, 0x0001, 0xfbff, 0x7c00, 0x3c01, 0x8000});
  folder.write("model.safetensors", file_of({{"m", "F16", "[2,3]", data}}));
  Weights f32 = weights_of(folder, DType::kF32);
  EXPECT_EQ(floats<float>(f32.table("m", {2, 3})),
            (std::vector<float>{1, 0x1p-24f, -65504, INFINITY, 1.0009765625f, -0.0f}));
  Weights bf16 = weights_of(folder, DType::kBF16);
  EXPECT_EQ(floats<BFloat16>(bf16.table("m", {2, 3})), (std::vector<float>{1, 0x1p-24f, -65536, INFINITY, 1, -0.0f}));
  EXPECT_EQ(bf16.owned_bytes(), 12u);
}

TEST(Weights, UnalignedDataIsCopied) {
  Folder folder;
  folder.write("model.safetensors",
               file_of({{"m", "BF16", "[2,3]", kBf16}, {"f", "F32", "[2]", raw<float>({1.5f, -2})}}, 1));
  Weights weights = weights_of(folder, DType::kF32);
  EXPECT_EQ(floats<BFloat16>(weights.table("m", {2, 3})), kBf16Values);
  EXPECT_THAT(floats<float>(weights.tensor("f", {2})), testing::ElementsAre(1.5f, -2));
  EXPECT_EQ(weights.owned_bytes(), 20u);
}

TEST(Weights, PartsAndBiasesShareOneDType) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"q.weight", "BF16", "[2,3]", kBf16},
                                             {"q.bias", "BF16", "[2]", kBf16.substr(0, 4)},
                                             {"k.weight", "F32", "[1,3]", raw<float>({7, 8, 0.1f})},
                                             {"k.bias", "F32", "[1]", raw<float>({9})}}));
  Weights f32 = weights_of(folder, DType::kF32);
  const Weight mixed = f32.linear({{"q", 2}, {"k", 1}}, 3, true);
  ASSERT_EQ(mixed.parts, 2);
  EXPECT_EQ(mixed.rows(), 3);
  EXPECT_EQ(floats<float>(mixed.data[0]), kBf16Values);
  EXPECT_THAT(floats<float>(mixed.data[1]), testing::ElementsAre(7, 8, 0.1f));
  EXPECT_THAT(floats<float>(mixed.bias[0]), testing::ElementsAre(1, -2));
  EXPECT_THAT(floats<float>(mixed.bias[1]), testing::ElementsAre(9));

  const Weight alone = f32.linear({{"q", 2}}, 3, true);
  EXPECT_EQ(alone.data[0].dtype, DType::kBF16);
  EXPECT_EQ(alone.bias[0].dtype, DType::kBF16);

  Weights bf16 = weights_of(folder, DType::kBF16);
  const Weight rounded = bf16.linear({{"q", 2}, {"k", 1}}, 3, false);
  EXPECT_EQ(rounded.data[1].dtype, DType::kBF16);
  EXPECT_FALSE(rounded.bias[0]);
}

TEST(Weights, ConvolutionKernelCountsAsMatrix) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"conv.weight", "BF16", "[2,3,1,1,1]", kBf16}}));
  Weights weights = weights_of(folder, DType::kBF16);
  EXPECT_EQ(weights.linear({{"conv", 2}}, 3, false).data[0].describe(), "BF16[2, 3]");
  EXPECT_THAT(error_of([&] {
                weights.linear({{"conv", 3}}, 2, false);
              }),
              HasSubstr("expected shape [3, 2], found [2, 3, 1, 1, 1]"));
}

TEST(Weights, WhatMappingCannotServeIsCountedBefore) {
  alignas(8) static const std::byte data[9] = {};
  const auto stored = [&](const char* dtype, size_t bytes, size_t at = 0) {
    return StoredTensor{"w", dtype, {}, data + at, bytes, "f"};
  };
  const std::vector<StoredTensor> tensors = {stored("BF16", 1000), stored("F16", 200), stored("F32", 40),
                                             stored("I64", 8), stored("BF16", 6, 1)};
  const ConvertedBytes bf16 = converted_bytes(tensors, DType::kBF16), f32 = converted_bytes(tensors, DType::kF32);
  EXPECT_EQ(bf16.stored, 200u + 40 + 6);
  EXPECT_EQ(bf16.owned, 200u + 20 + 6);
  EXPECT_EQ(f32.stored, 200u + 6);
  EXPECT_EQ(f32.owned, 400u + 6);
}

TEST(Weights, AConvertedTensorIsOwnedOnce) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"m.weight", "F32", "[1,2]", raw<float>({1, 2})}}));
  Weights weights = weights_of(folder, DType::kBF16);
  const Tensor table = weights.table("m.weight", {1, 2});
  EXPECT_EQ(weights.linear({{"m", 1}}, 2, false).data[0].data, table.data);
  EXPECT_EQ(weights.owned_bytes(), 4u);
}

TEST(Weights, Aliases) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"model.language_model.norm.weight", "BF16", "[6]", kBf16},
                                             {"model.visual.x", "BF16", "[6]", kBf16},
                                             {"lm_head.weight", "BF16", "[6]", kBf16}}));
  Weights weights =
      weights_of(folder, DType::kBF16, {{"model.", "model.language_model."}, {"visual.", "model.visual."}});
  EXPECT_TRUE(weights.contains("model.norm.weight"));
  EXPECT_TRUE(weights.contains("visual.x"));
  EXPECT_TRUE(weights.contains("lm_head.weight"));
  EXPECT_FALSE(weights.contains("language_model.norm.weight"));
  EXPECT_EQ(floats<BFloat16>(weights.tensor("model.norm.weight", {6})), kBf16Values);
  EXPECT_EQ(floats<BFloat16>(weights.tensor("visual.x", {6})), kBf16Values);
}

TEST(Weights, ErrorsNameTensorExpectedAndFound) {
  Folder folder;
  folder.write("model.safetensors", file_of({{"layers.0.norm", "BF16", "[6]", kBf16},
                                             {"layers.0.up", "I8", "[2]", "ab"},
                                             {"layers.0.down", "F8_E4M3", "[2]", "ab"},
                                             {"other", "BF16", "[6]", kBf16}}));
  Weights weights = weights_of(folder, DType::kBF16);
  EXPECT_THAT(error_of([&] { weights.tensor("layers.0.nrom", {6}); }),
              testing::AllOf(HasSubstr(folder.path()), HasSubstr("tensor \"layers.0.nrom\" [6] is missing"),
                             HasSubstr("nearest: \"layers.0.norm\", ")));
  EXPECT_THAT(error_of([&] { weights.tensor("layers.0.norm", {3}); }),
              testing::AllOf(HasSubstr("model.safetensors: tensor \"layers.0.norm\""),
                             HasSubstr("expected shape [3], found [6]")));
  EXPECT_THAT(error_of([&] { weights.table("layers.0.norm", {3, 2}); }), HasSubstr("expected shape [3, 2], found [6]"));
  EXPECT_THAT(error_of([&] { weights.tensor("layers.0.up", {2}); }),
              HasSubstr("tensor \"layers.0.up\": expected dtype BF16, F16 or F32, found \"I8\""));
  EXPECT_THAT(error_of([&] { weights.table("layers.0.down", {2}); }), HasSubstr("found \"F8_E4M3\""));
}

TEST(Synthetic, DependsOnSeedAndNameAlone) {
  const auto source = [](uint64_t seed) { return Weights(synthetic_weights("made", seed), DType::kBF16); };
  Weights a = source(1), b = source(1), c = source(2);
  const auto one = floats<BFloat16>(a.tensor("one", {1000}));
  const auto two = floats<BFloat16>(a.tensor("two", {1000}));
  EXPECT_EQ(floats<BFloat16>(b.tensor("two", {1000})), two);
  EXPECT_EQ(floats<BFloat16>(b.tensor("one", {1000})), one);
  EXPECT_NE(one, two);
  EXPECT_NE(floats<BFloat16>(c.tensor("one", {1000})), one);
  EXPECT_EQ(a.tensor("one", {1000}).data, a.tensor("one", {1000}).data);
  EXPECT_GE(a.owned_bytes(), 4000u);
}

TEST(Synthetic, TheSameOnEveryMachine) {
  Weights weights(synthetic_weights("made", 7), DType::kBF16);
  const Tensor t = weights.tensor("a.weight", {4});
  std::vector<uint16_t> bits;
  for (int i = 0; i < 4; ++i) bits.push_back(t.as<BFloat16>()[i].bits);
  EXPECT_THAT(bits, testing::ElementsAre(15585, 48262, 15554, 15399));
}

TEST(Synthetic, IsNormal) {
  Weights weights(synthetic_weights("made", 3), DType::kBF16);
  const auto values = floats<BFloat16>(weights.tensor("w", {1000, 1000}));
  double sum = 0, squares = 0, fourth = 0, within = 0;
  for (const float v : values) {
    sum += v;
    squares += double{v} * v;
    fourth += std::pow(v / 0.02, 4);
    within += std::abs(v) < 0.02 ? 1 : 0;
  }
  const double n = static_cast<double>(values.size());
  // Five standard errors: of the mean 2e-5, of the variance sqrt(2/n), of the fourth moment sqrt(96/n).
  EXPECT_NEAR(sum / n, 0, 1e-4);
  EXPECT_NEAR(squares / n / 4e-4, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3, 0.05 + 5 * std::sqrt(96 / n));  // a binomial of 64 has 2.97
  EXPECT_NEAR(within / n, 0.6827, 5 * std::sqrt(0.25 / n) + 0.002);
}

TEST(Synthetic, NormsAreOneAndRowsDiffer) {
  Weights weights(synthetic_weights("made", 3), DType::kF32);
  EXPECT_THAT(floats<float>(weights.tensor("model.norm.weight", {3})), testing::Each(1.0f));
  EXPECT_THAT(floats<float>(weights.tensor("visual.merger.ln_q.weight", {3})), testing::Each(1.0f));
  // More values than the base block has: rows still never coincide.
  const Tensor big = weights.table("embed", {300000, 64});
  std::set<uint64_t> starts;
  for (int64_t row = 0; row < big.dim(0); ++row) {
    uint64_t start = 14695981039346656037u;
    for (int64_t i = 0; i < 64; ++i) start = (start ^ big.row<BFloat16>(row)[i].bits) * 1099511628211u;
    starts.insert(start);
  }
  EXPECT_EQ(starts.size(), 300000u);
}

}  // namespace
}  // namespace saccade
