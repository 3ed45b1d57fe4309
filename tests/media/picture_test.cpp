#include <gtest/gtest.h>

#include "media/goldens.h"
#include "media/image.h"

namespace saccade::media {
namespace {

TEST(Picture, PixelsEqualThoseOfPillow) {
  const Json pictures = goldens("pictures");
  ASSERT_GE(pictures.size(), 60u);
  for (const Json& golden : pictures) {
    const std::string name = golden.at("file");
    const Image image = load_image(data_path(name));
    EXPECT_EQ(image.width, golden.at("width")) << name;
    EXPECT_EQ(image.height, golden.at("height")) << name;
    EXPECT_EQ(crc(image.rgb.data(), image.rgb.size()), golden.at("rgb").get<uint32_t>()) << name;
  }
}

TEST(Picture, ResizedPixelsEqualThoseOfPillow) {
  for (const Json& golden : goldens("resizes")) {
    const std::string name = golden.at("file");
    const Image image = resize_bicubic(load_image(data_path(name)), golden.at("width"), golden.at("height"));
    EXPECT_EQ(crc(image.rgb.data(), image.rgb.size()), golden.at("rgb").get<uint32_t>()) << golden.dump();
  }
}

}  // namespace
}  // namespace saccade::media
