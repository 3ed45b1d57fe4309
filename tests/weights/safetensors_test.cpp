#include "weights/safetensors.h"

#include <gmock/gmock.h>

#include "weights/safetensors_maker.h"

namespace saccade {
namespace {

using test::error_of;
using test::safetensors;
using testing::HasSubstr;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string parse_error(const std::string& file) {
  return error_of([&] { parse_safetensors(bytes_of(file), "x.safetensors"); });
}

struct Bad {
  const char* what;
  std::string file;
  const char* message;
};

std::string header_of(const std::string& tensors, size_t data_bytes) {
  return safetensors("{" + tensors + "}", std::string(data_bytes, 'x'));
}

TEST(Safetensors, RefusesBadHeaders) {
  const std::string f32_2 = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const Bad table[] = {
      {"empty file", "", "0 bytes, too short"},
      {"cut length", "1234567", "7 bytes, too short"},
      {"header beyond the file", safetensors("{}", "", 3), "header of 3 bytes does not fit into the file of 10 bytes"},
      {"over the limit", safetensors("{}", "", 100'000'001), "header of 100000001 bytes, more than the limit"},
      {"no JSON", safetensors("{\"a\"", ""), "not valid JSON"},
      {"empty header", safetensors("", "", 0), "not valid JSON"},
      {"invalid UTF-8", safetensors("{\"\xff\":1}", ""), "not valid JSON"},
      {"too deep", safetensors("{\"a\":" + std::string(5000, '[') + std::string(5000, ']') + "}", ""),
       "not valid JSON"},
      {"array", safetensors("[]", ""), "expected a JSON object"},
      {"tensor is a number", header_of(R"("a":1)", 0), R"(tensor "a": expected an object with dtype, shape)"},
      {"no dtype", header_of(R"("a":{"shape":[],"data_offsets":[0,4]})", 4), "expected an object with dtype, shape"},
      {"no shape", header_of(R"("a":{"dtype":"F32","data_offsets":[0,4]})", 4), "expected an object with dtype"},
      {"no offsets", header_of(R"("a":{"dtype":"F32","shape":[1]})", 4), "expected an object with dtype"},
      {"dtype is a number", header_of(R"("a":{"dtype":1,"shape":[1],"data_offsets":[0,4]})", 4),
       R"(tensor "a": expected dtype: a string, found "1")"},
      {"shape is a number", header_of(R"("a":{"dtype":"F32","shape":1,"data_offsets":[0,4]})", 4),
       "expected shape: an array of sizes"},
      {"negative size", header_of(R"("a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4),
       "expected shape: sizes from 0 to 2^63 - 1, found \"-1\""},
      {"fractional size", header_of(R"("a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4), "sizes from 0"},
      {"size over 2^63", header_of(R"("a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})", 4),
       "sizes from 0"},
      {"product wraps to 4 bytes",
       header_of(R"("a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", 4),
       "more elements than can be addressed"},
      {"product wraps in two steps",
       header_of(R"("a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
       "more elements than can be addressed"},
      {"one offset", header_of(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0]})", 4),
       "expected data_offsets: [begin, end]"},
      {"three offsets", header_of(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", 4),
       "expected data_offsets: [begin, end]"},
      {"negative offset", header_of(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]})", 4),
       "expected data_offsets: [begin, end]"},
      {"end before begin", header_of(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4),
       "begin 4 lies after end 0"},
      {"size is not the shape's", header_of(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4),
       "F32 [2] takes 8 bytes, data_offsets give 4"},
      {"beyond the data", header_of(f32_2, 7), "data_offsets end at 8, the file has 7 bytes of data"},
      {"offsets near 2^64",
       header_of(R"("a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]})", 4),
       "data_offsets end at 18446744073709551615"},
      {"overlap", header_of(f32_2 + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})", 12),
       R"(tensor "b": data_offsets begin at 4, inside the tensor before it, which ends at 8)"},
      {"same place twice", header_of(f32_2 + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 8),
       "inside the tensor before it"},
      {"gap between", header_of(f32_2 + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]})", 16),
       R"(tensor "b": 4 bytes before it belong to no tensor)"},
      {"gap at the end", header_of(f32_2, 9), "1 bytes after the last tensor belong to no tensor"},
      {"tensor twice", header_of(f32_2 + "," + f32_2, 8), R"(tensor "a" stands twice)"},
      {"tensor twice, spelt otherwise",
       header_of(f32_2 + R"(,"\u0061":{"dtype":"F32","shape":[0],"data_offsets":[8,8]})", 8),
       R"(tensor "a" stands twice)"},
      {"key twice", header_of(R"("a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", 4),
       R"(tensor "a": dtype stands twice)"},
      {"control characters stay out of the message", header_of(R"("a\n\u001b[31m":1)", 0), R"("a\x0a\x1b[31m")"},
  };
  for (const Bad& bad : table) {
    const std::string error = parse_error(bad.file);
    EXPECT_THAT(error, HasSubstr("x.safetensors: ")) << bad.what;
    EXPECT_THAT(error, HasSubstr(bad.message)) << bad.what;
    EXPECT_EQ(error.find('\n'), error.npos) << bad.what;
  }
}

TEST(Safetensors, LengthNearTwoToThe64IsRefused) {
  std::string file = safetensors("{}", "");
  for (size_t i = 0; i < 8; ++i) file[i] = '\xff';
  EXPECT_THAT(parse_error(file), HasSubstr("header of 18446744073709551615 bytes, more than the limit"));
}

TEST(Safetensors, ListsTensorsInOrderOfTheirData) {
  const std::string data = test::raw<float>({1, 2, 3, 4, 5, 6}) + test::raw<int64_t>({7});
  const std::string file = safetensors(
      R"({"b":{"dtype":"I64","shape":[],"data_offsets":[24,32]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"none":{"dtype":"BF16","shape":[0,8],"data_offsets":[24,24]}}  )",
      data);
  const auto tensors = parse_safetensors(bytes_of(file), "x.safetensors");
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, "F32");
  EXPECT_THAT(tensors[0].shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(tensors[0].bytes, 24u);
  EXPECT_EQ(tensors[0].file, "x.safetensors");
  float last = 0;
  std::memcpy(&last, tensors[0].data + 20, sizeof last);
  EXPECT_EQ(last, 6);
  EXPECT_EQ(tensors[1].name, "none");
  EXPECT_EQ(tensors[1].bytes, 0u);
  EXPECT_EQ(tensors[2].name, "b");
  EXPECT_TRUE(tensors[2].shape.empty());
}

TEST(Safetensors, AFileWithoutTensorsIsEmpty) {
  EXPECT_TRUE(parse_safetensors(bytes_of(safetensors("{}", "")), "x").empty());
}

TEST(Safetensors, UnknownDTypeIsListedAsItStands) {
  const auto tensors =
      parse_safetensors(bytes_of(header_of(R"("a":{"dtype":"F4","shape":[3,3],"data_offsets":[0,5]})", 5)), "x");
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].dtype, "F4");
  EXPECT_EQ(tensors[0].bytes, 5u);
}

TEST(SafetensorsIndex, RefusesBadMaps) {
  const std::pair<std::string, const char*> table[] = {
      {"", "not valid JSON"},
      {"[]", "expected a JSON object"},
      {"{}", "weight_map: expected an object"},
      {R"({"weight_map":[]})", "weight_map: expected an object"},
      {R"({"weight_map":{"a":1}})", R"(weight_map: "a": expected a file name)"},
      {R"({"weight_map":{"a":""}})", "expected a file name without a path, found \"\""},
      {R"({"weight_map":{"a":".."}})", "without a path"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", R"("a": expected a file name without a path, found "../x)"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "without a path"},
      {R"({"weight_map":{"a":"sub/x.safetensors"}})", "without a path"},
      {R"({"weight_map":{"a":"..\\x"}})", "without a path"},
      {R"({"weight_map":{"a":"x\u0000y"}})", "without a path"},
      {R"({"weight_map":{"a":"x","a":"y"}})", R"(weight_map: "a" stands twice)"},
  };
  for (const auto& [text, message] : table)
    EXPECT_THAT(error_of([&, json = text] { parse_safetensors_index(json, "i.json"); }), HasSubstr(message)) << text;
}

TEST(SafetensorsIndex, ReadsPairs) {
  const auto pairs = parse_safetensors_index(R"({"metadata":{"total_size":8},"weight_map":{"a":"x","b":"y"}})", "i");
  EXPECT_THAT(pairs, testing::ElementsAre(testing::Pair("a", "x"), testing::Pair("b", "y")));
}

}  // namespace
}  // namespace saccade
