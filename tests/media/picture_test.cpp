#include <gtest/gtest.h>

#include <cstdio>

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

TEST(Picture, PngIsReadBackAsWritten) {
  const std::string path = ::testing::TempDir() + "saccade-round-trip.png";
  for (const auto& [width, height] : {std::pair{1, 1}, {7, 5}, {300, 200}}) {
    Image image{width, height, {}};
    for (uint32_t i = 0; i < static_cast<uint32_t>(width * height) * 3; ++i)
      image.rgb.push_back(static_cast<uint8_t>(i * i >> 3));
    write_png(path, image);
    const Image back = load_image(path);
    EXPECT_EQ(back.width, width);
    EXPECT_EQ(back.height, height);
    EXPECT_EQ(back.rgb, image.rgb);
  }
  std::remove(path.c_str());
}

TEST(Picture, PngThatCannotBeWritten) {
  const Image image{64, 64, std::vector<uint8_t>(size_t{64} * 64 * 3)};
  EXPECT_EQ(error_of([&] { write_png("/no/such/out.png", image); }),
            "/no/such/out.png: cannot write: No such file or directory");
  EXPECT_EQ(error_of([&] { write_png("/dev/full", image); }), "/dev/full: cannot write: No space left on device");
}

}  // namespace
}  // namespace saccade::media
