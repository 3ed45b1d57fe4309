#include "models/deepseek_vl2/boxes.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "models/qwen2_5_vl/boxes.h"

namespace saccade {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Two pictures; boxes are on the second: 1000 x 500, seen as 500 x 1000.
const std::vector<Picture> kPictures = {{10, 10, 28, 28}, {1000, 500, 500, 1000}};

std::vector<std::string> lines(const std::vector<Box>& boxes) {
  std::vector<std::string> out;
  for (const Box& b : boxes) {
    EXPECT_EQ(b.image, 1);
    out.push_back(fmt::format("{} {:.0f} {:.0f} {:.0f} {:.0f}", b.label, b.x1, b.y1, b.x2, b.y2));
  }
  return out;
}

std::vector<std::string> qwen(std::string_view text) { return lines(qwen2_5_vl::parse_boxes(text, kPictures)); }
std::vector<std::string> deepseek(std::string_view text) { return lines(deepseek_vl2::parse_boxes(text, kPictures)); }

TEST(QwenBoxes, FromTheResizedPictureToTheOriginal) {
  EXPECT_THAT(qwen("```json\n[\n\t{\"bbox_2d\": [10, 20, 100, 200], \"label\": \"a cat\"},\n"
                   "\t{\"label\": \"b\", \"bbox_2d\": [1.5, 2, 3, 4.0]}\n]\n```"),
              ElementsAre("a cat 20 10 200 100", "b 3 1 6 2"));
  EXPECT_THAT(qwen(R"({"bbox_2d": [1, 2, 3, 4], "text_content": "EXIT"})"), ElementsAre("EXIT 2 1 6 2"));
  EXPECT_THAT(qwen(R"({"bbox_2d": [1, 2, 3, 4]})"), ElementsAre(" 2 1 6 2"));
  EXPECT_THAT(qwen(R"({"boxes": [{"bbox_2d": [1, 2, 3, 4], "label": "in"}], "bbox_2d": [5, 6, 7, 8], "label": "out"})"),
              ElementsAre("in 2 1 6 2", "out 10 3 14 4"));
}

TEST(QwenBoxes, AreOrderedAndClamped) {
  EXPECT_THAT(qwen(R"({"bbox_2d": [100, 200, 10, 20]})"), ElementsAre(" 20 10 200 100"));
  EXPECT_THAT(qwen(R"({"bbox_2d": [-5, -1e300, 1e300, 123456789012345678901234567890]})"),
              ElementsAre(" 0 0 1000 500"));
}

TEST(QwenBoxes, SurviveDamage) {
  const std::string good = R"({"bbox_2d": [1, 2, 3, 4], "label": "g"})";
  const auto only_good = ElementsAre("g 2 1 6 2");
  EXPECT_THAT(qwen("[" + good + R"(, {"bbox_2d": [5, 6)"), only_good);
  EXPECT_THAT(qwen("[" + good + R"(, {"bbox_2d": [5, 6, 7, 8], "label": "cut)"), only_good);
  for (const char* bad :
       {R"({"bbox_2d": [NaN, 1, 2, 3]})", R"({"bbox_2d": [1e999, 1, 2, 3]})", R"({"bbox_2d": [1, 2, 3]})",
        R"({"bbox_2d": [1, 2, 3, 4, 5]})", R"({"bbox_2d": [[1, 2, 3, 4]]})", R"({"bbox_2d": [1, 2, "3", 4]})",
        R"({"bbox_2d": [1, 2, null, 4]})", R"({"bbox_2d": [1, 2, {}, 4]})", R"({"bbox_2d": {"a": [1, 2, 3, 4]}})",
        R"({"bbox_2d": "1, 2, 3, 4"})", R"({"bbox": [1, 2, 3, 4]})", "{{{{{", "{]", "}", "{\"\xff\": 1}", "{",
        "{\"a\" {"})
    EXPECT_THAT(qwen(bad + good), only_good) << bad;
  EXPECT_THAT(qwen(good + good), ElementsAre("g 2 1 6 2", "g 2 1 6 2"));
  EXPECT_THAT(qwen("no JSON at all"), IsEmpty());
  EXPECT_THAT(qwen(""), IsEmpty());
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_THAT(qwen(deep + good), IsEmpty());  // deeper than any answer
  EXPECT_THAT(qwen(R"({"bbox_2d": )" + std::string(100000, '[')), IsEmpty());
  EXPECT_THAT(qwen(std::string(100000, '{') + good), only_good);
  EXPECT_THAT(qwen2_5_vl::parse_boxes(good, {}), IsEmpty());
}

TEST(DeepseekBoxes, FromThousandthsToTheOriginal) {
  EXPECT_THAT(deepseek("<|ref|> red circle <|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>."),
              ElementsAre("red circle 0 0 1000 500"));
  EXPECT_THAT(deepseek("A <|ref|>dog<|/ref|><|det|>[[333, 666, 666, 999], [1,2,3,4]]<|/det|> and a <|ref|>cat<|/ref|> "
                       "<|det|>[[666,999,333,666]]<|/det|>"),
              ElementsAre("dog 333 333 667 500", "dog 1 1 3 2", "cat 333 333 667 500"));
}

TEST(DeepseekBoxes, SurviveDamage) {
  const std::string good = "<|ref|>g<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>";
  const auto only_good = ElementsAre("g 0 0 1000 500");
  for (const char* det : {"", "[[1, 2, 3]]", "[1, 2, 3, 4]", "[[1, 2, 3, 4]", "[[1, 2, 3, 4]]]", "[[1, 2, -3, 4]]",
                          "[[1, 2, 99999999999999999999, 4]]", "[[1, 2, NaN, 4]]", "[[1.5, 2, 3, 4]]", "[]", "[[]]",
                          "[[1, 2, 3, 4], [5, x]]"}) {
    EXPECT_THAT(deepseek(std::string("<|ref|>bad<|/ref|><|det|>") + det + "<|/det|>" + good), only_good) << det;
    EXPECT_THAT(deepseek(std::string("<|ref|>bad<|/ref|><|det|>") + det + good).back(), "g 0 0 1000 500") << det;
  }
  for (const char* before : {"<|ref|>", "<|ref|>x", "<|/ref|>", "<|det|>[[1, 2, 3, 4]]<|/det|>", "<|ref|>x<|/ref|>",
                             "<|ref|>x<|/ref|> is at <|det|>[[1, 2, 3, 4]]<|/det|>"})
    EXPECT_THAT(deepseek(before + good), only_good) << before;
  EXPECT_THAT(deepseek(good + "<|ref|>c<|/ref|><|det|>[[0, 0, 1, 1], [5, 6"),
              ElementsAre("g 0 0 1000 500", "c 0 0 1 1"));  // cut off
  EXPECT_THAT(deepseek("<|ref|>c<|/ref|><|det|>[[99999, 0, 0, 0]]<|/det|>"), ElementsAre("c 0 0 1000 0"));
  EXPECT_THAT(deepseek("<|ref|>"), IsEmpty());
  EXPECT_THAT(deepseek_vl2::parse_boxes(good, {}), IsEmpty());
}

}  // namespace
}  // namespace saccade
