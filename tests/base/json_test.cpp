#include "base/json.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"

namespace saccade {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

std::string nested_arrays(int depth) {
  return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
}

std::string nested_objects(int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += "{\"a\":";
  return text + "1" + std::string(static_cast<size_t>(depth), '}');
}

TEST(Json, ParsesValues) {
  const Json json = parse_json(R"({"a": [1, 2.5, "x"], "b": {"c": null}})", "config.json");
  EXPECT_EQ(json.at("a").at(1).get<double>(), 2.5);
  EXPECT_TRUE(json.at("b").at("c").is_null());
}

TEST(Json, DepthLimitIsExact) {
  for (const auto& nested : {nested_arrays, nested_objects}) {
    EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth), "ok"));
    EXPECT_THAT([&] { parse_json(nested(kMaxJsonDepth + 1), "deep.json"); },
                ThrowsMessage<Error>(AllOf(HasSubstr("deep.json"), HasSubstr("deeper than 64"))));
  }
}

TEST(Json, AMillionLevelsAreAnErrorAndNotAStackOverflow) {
  EXPECT_THAT([] { parse_json(nested_arrays(1000000), "bomb"); }, ThrowsMessage<Error>(HasSubstr("deeper than 64")));
  EXPECT_THAT([] { parse_json(std::string(1000000, '['), "bomb"); }, ThrowsMessage<Error>(HasSubstr("bomb")));
}

TEST(Json, SyntaxErrorsAreOneLineThatNamesTheOrigin) {
  for (const char* text : {"", "{", "{\"a\":1,}", "[1] 2", "nul", "\"\xff\xfe\"", "{\n\"a\"\n:\n}", "[1e999999]"}) {
    EXPECT_THAT([&] { parse_json(text, "x.json"); },
                ThrowsMessage<Error>(AllOf(HasSubstr("x.json: not valid JSON"), Not(HasSubstr("\n")))))
        << text;
  }
}

TEST(Json, FilesAreReadUpToALimit) {
  const std::string path = testing::TempDir() + "json_test_file.json";
  std::ofstream(path) << R"({"key": 7})";
  EXPECT_EQ(read_json_file(path).at("key").get<int>(), 7);
  EXPECT_THAT([&] { read_json_file(path, 9); }, ThrowsMessage<Error>(HasSubstr(path)));
  std::filesystem::remove(path);
  EXPECT_THAT([&] { read_json_file(path); }, ThrowsMessage<Error>(HasSubstr(path)));
}

}  // namespace
}  // namespace saccade
