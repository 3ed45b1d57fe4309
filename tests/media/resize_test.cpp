#include <gtest/gtest.h>

#include <random>

#include "media/image.h"
#include "media/resample.h"

namespace saccade::media {
namespace {

Image noise(int width, int height, uint32_t seed) {
  std::mt19937 random(seed);
  Image image{width, height, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(height) * 3)};
  // Extremes make the sums overshoot, so that clipping is met.
  for (uint8_t& v : image.rgb) v = static_cast<uint8_t>(random() % 4 == 0 ? random() % 256 : random() % 2 * 255);
  return image;
}

// The two passes written plainly.
Image across(const Image& image, int width) {
  if (width == image.width) return image;
  Image out{width, image.height, {}};
  out.rgb.resize(static_cast<size_t>(width) * static_cast<size_t>(image.height) * 3);
  const Rows rows{image.rgb.data(), static_cast<size_t>(image.width) * 3, image.rgb.data() + image.rgb.size()};
  horizontal_scalar(rows, image.height, bicubic_resampling(image.width, width), out.rgb.data());
  return out;
}

Image down(const Image& image, int height) {
  if (height == image.height) return image;
  const Resampling plan = bicubic_resampling(image.height, height);
  const size_t row = static_cast<size_t>(image.width) * 3;
  Image out{image.width, height, std::vector<uint8_t>(row * static_cast<size_t>(height))};
  for (int y = 0; y < height; ++y) {
    const auto i = static_cast<size_t>(y);
    vertical_scalar(image.rgb.data() + row * static_cast<size_t>(plan.first[i]), row, plan.row(y), plan.count[i],
                    out.rgb.data() + row * i);
  }
  return out;
}

Image resize_scalar(const Image& image, int width, int height) {
  const bool down_first = image.height > height && image.height - height > 2 * (image.width - width);
  return down_first ? across(down(image, height), width) : down(across(image, width), height);
}

TEST(Resize, FastPassesEqualTheScalarOnes) {
  const int sizes[] = {1, 2, 3, 5, 11, 28, 33, 64, 131, 300};
  uint32_t seed = 1;
  for (const int w : sizes)
    for (const int h : {1, 2, 7, 28, 93})
      for (const int out_w : {1, 4, 28, 56, 171})
        for (const int out_h : {1, 28, 95}) {
          const Image image = noise(w, h, seed++);
          const Image out = resize_bicubic(image, out_w, out_h);
          ASSERT_EQ(out.width, out_w);
          ASSERT_EQ(out.height, out_h);
          ASSERT_EQ(out.rgb, resize_scalar(image, out_w, out_h).rgb)
              << w << "x" << h << " to " << out_w << "x" << out_h;
        }
}

TEST(Resize, WeightsSumToOne) {
  for (const int in : {1, 3, 28, 1000})
    for (const int out : {1, 5, 28, 999}) {
      const Resampling plan = bicubic_resampling(in, out);
      for (int i = 0; i < out; ++i) {
        int64_t sum = 0;
        for (int k = 0; k < plan.taps; ++k) sum += plan.row(i)[k];
        EXPECT_NEAR(static_cast<double>(sum), 1 << kWeightBits, plan.taps);
      }
    }
}

}  // namespace
}  // namespace saccade::media
