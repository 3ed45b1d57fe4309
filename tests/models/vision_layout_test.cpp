#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "models/qwen2_5_vl/vision.h"

namespace saccade::qwen2_5_vl {
namespace {

VisionConfig config() {
  VisionConfig c;
  c.hidden = 1280;
  return c;
}

VisionLayout layout_of(const std::vector<VisionGrid>& grids) { return {grids, config()}; }

// Published check values: a 480x640 picture.
TEST(VisionLayout, WindowsOfAPictureCutAtTheBorder) {
  const VisionLayout layout = layout_of({{1, 34, 46}});
  ASSERT_EQ(layout.window_offsets.size(), 31u);
  const std::vector<int32_t> begin(layout.window_offsets.begin(), layout.window_offsets.begin() + 6);
  const std::vector<int32_t> end(layout.window_offsets.end() - 4, layout.window_offsets.end());
  EXPECT_EQ(begin, (std::vector<int32_t>{0, 64, 128, 192, 256, 320}));
  EXPECT_EQ(end, (std::vector<int32_t>{1520, 1536, 1552, 1564}));
  EXPECT_EQ(layout.frame_offsets, (std::vector<int32_t>{0, 1564}));
}

// The reference pads by a whole window when the side divides; those windows are empty and vanish.
TEST(VisionLayout, NoEmptyWindows) {
  EXPECT_EQ(layout_of({{1, 16, 16}}).window_offsets, (std::vector<int32_t>{0, 64, 128, 192, 256}));
  EXPECT_EQ(layout_of({{1, 4, 4}}).window_offsets, (std::vector<int32_t>{0, 16}));
}

TEST(VisionLayout, OrderIsAPermutationAndItsInverse) {
  for (const auto& [t, h, w] : {std::array{1, 34, 46}, std::array{3, 10, 6}, std::array{1, 2, 400}}) {
    const VisionLayout layout = layout_of({{t, h, w}});
    std::vector<int32_t> sorted = layout.window_order;
    std::sort(sorted.begin(), sorted.end());
    std::vector<int32_t> all(static_cast<size_t>(t * h * w / 4));
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(sorted, all);
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(layout.inverse_order[static_cast<size_t>(layout.window_order[i])], static_cast<int32_t>(i));
    }
  }
}

TEST(VisionLayout, PicturesFollowEachOther) {
  const VisionLayout first = layout_of({{1, 34, 46}}), second = layout_of({{3, 10, 6}});
  const VisionLayout both = layout_of({{1, 34, 46}, {3, 10, 6}});
  const auto joined = [](std::vector<int32_t> a, const std::vector<int32_t>& b, size_t drop, int32_t add) {
    for (size_t i = drop; i < b.size(); ++i) a.push_back(b[i] + add);
    return a;
  };
  EXPECT_EQ(both.window_order, joined(first.window_order, second.window_order, 0, 34 * 46 / 4));
  EXPECT_EQ(both.inverse_order, joined(first.inverse_order, second.inverse_order, 0, 34 * 46 / 4));
  EXPECT_EQ(both.window_offsets, joined(first.window_offsets, second.window_offsets, 1, 34 * 46));
  EXPECT_EQ(both.frame_offsets, joined(first.frame_offsets, second.frame_offsets, 1, 34 * 46));
  for (const size_t axis : {0, 1}) {
    const auto of = [axis](const VisionLayout& layout) {
      const auto half = static_cast<std::ptrdiff_t>(layout.positions.size() / 2);
      const auto begin = layout.positions.begin() + static_cast<std::ptrdiff_t>(axis) * half;
      return std::vector<int32_t>(begin, begin + half);
    };
    EXPECT_EQ(of(both), joined(of(first), of(second), 0, 0));
  }
  EXPECT_EQ(both.longest_window, 64);
  EXPECT_EQ(both.longest_frame, 34 * 46);
}

// Full attention stays inside a temporal slice; every frame has the same rows and columns.
TEST(VisionLayout, FramesOfAClip) {
  const VisionLayout layout = layout_of({{2, 4, 12}});
  EXPECT_EQ(layout.frame_offsets, (std::vector<int32_t>{0, 48, 96}));
  EXPECT_EQ(layout.window_offsets, (std::vector<int32_t>{0, 32, 48, 80, 96}));
  for (size_t p = 0; p < 48; ++p) {
    EXPECT_EQ(layout.positions[p], layout.positions[p + 48]);
    EXPECT_EQ(layout.positions[96 + p], layout.positions[96 + p + 48]);
  }
  const std::vector<int32_t> rows(layout.positions.begin(), layout.positions.begin() + 8);
  const std::vector<int32_t> cols(layout.positions.begin() + 96, layout.positions.begin() + 104);
  EXPECT_EQ(rows, (std::vector<int32_t>{0, 0, 1, 1, 0, 0, 1, 1}));
  EXPECT_EQ(cols, (std::vector<int32_t>{0, 1, 0, 1, 2, 3, 2, 3}));
}

}  // namespace
}  // namespace saccade::qwen2_5_vl
