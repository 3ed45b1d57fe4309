#include "draw.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace saccade::apps {
namespace {

media::Image grey(int width, int height) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(height) * 3, 128)};
}

std::vector<int> at(const media::Image& image, int x, int y) {
  const auto* p =
      image.rgb.data() + (static_cast<size_t>(y) * static_cast<size_t>(image.width) + static_cast<size_t>(x)) * 3;
  return {p[0], p[1], p[2]};
}

const std::vector<int> kGrey = {128, 128, 128}, kRed = {230, 25, 50}, kLime = {50, 220, 50};

TEST(DrawBoxes, OutlinesLieInsideTheBox) {
  for (const auto& [side, line] : {std::pair{200, 2}, {1200, 3}, {4000, 4}}) {
    media::Image image = grey(side, side);
    const float low = 60, high = static_cast<float>(side - 60);
    draw_boxes(image, std::vector<Box>{{"a", 0, low, low, high, high}});
    const int last = side - 61, middle = side / 2;
    for (const int i : {60, 60 + line - 1, last, last - line + 1}) {
      EXPECT_EQ(at(image, i, middle), kRed) << side << " " << i;
      EXPECT_EQ(at(image, middle, i), kRed) << side << " " << i;
    }
    for (const int i : {59, 60 + line, last + 1, last - line, middle}) {
      EXPECT_EQ(at(image, i, middle), kGrey) << side << " " << i;
      EXPECT_EQ(at(image, middle, i), kGrey) << side << " " << i;
    }
  }
}

TEST(DrawBoxes, NumbersStandAboveTheBox) {
  media::Image image = grey(200, 200);
  draw_boxes(image, std::vector<Box>{{"a", 0, 60, 60, 140, 140}, {"b", 0, 10, 100, 50, 150}});
  EXPECT_EQ(at(image, 60, 42), kRed);  // the tag is 9 rows of 2 pixels
  EXPECT_EQ(at(image, 60, 41), kGrey);
  EXPECT_EQ(at(image, 10, 100), kLime);
  // "1": the stem is the third of five columns, white on red.
  for (int row = 0; row < 7; ++row)
    EXPECT_EQ(at(image, 60 + 3 * 2, 42 + (row + 1) * 2), (std::vector<int>{255, 255, 255}));
  EXPECT_EQ(at(image, 60 + 5 * 2, 42 + 2), kRed);
}

TEST(DrawBoxes, AnythingFits) {
  for (const auto& [width, height] : {std::pair{1, 1}, {3, 300}, {300, 3}, {40, 40}}) {
    media::Image image = grey(width, height);
    const auto w = static_cast<float>(width), h = static_cast<float>(height);
    const std::vector<Box> boxes(123, {"", 0, 0, 0, w, h});
    draw_boxes(image, boxes);
    draw_boxes(image, std::vector<Box>{{"corner", 0, w, h, w, h}, {"out", 0, -1e30f, -5, 1e30f, 1e9f}});
    EXPECT_NE(at(image, width - 1, height - 1), kGrey);
  }
  media::Image image = grey(50, 50);
  draw_boxes(image, {});
  EXPECT_EQ(image.rgb, grey(50, 50).rgb);
  draw_boxes(image, std::vector<Box>{{"point", 0, 25, 40, 25, 40}});
  EXPECT_EQ(at(image, 25, 40), kRed);
}

TEST(DescribeBoxes, OneALine) {
  EXPECT_EQ(describe_boxes(std::vector<Box>{{"red\ncircle", 0, 1.4f, 2.6f, 30, 40}, {"", 0, 0, 0, 5, 6}}),
            "  1  red circle  red  1 3 30 40\n  2  -  lime  0 0 5 6");
  std::set<std::string> names;
  for (size_t i = 0; i < 10; ++i) names.insert(box_color_name(i));
  EXPECT_EQ(names.size(), 10u);
  EXPECT_STREQ(box_color_name(10), box_color_name(0));
}

}  // namespace
}  // namespace saccade::apps
