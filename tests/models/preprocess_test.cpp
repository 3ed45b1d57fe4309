#include "models/qwen2_5_vl/preprocess.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "media/goldens.h"

namespace saccade::qwen2_5_vl {
namespace {

using media::crc;
using media::data_path;
using media::error_of;
using media::goldens;
using testing::HasSubstr;

// Every byte different from its neighbours, in space and time.
media::Image pattern(int width, int height, int seed) {
  media::Image image{width, height, {}};
  for (int i = 0; i < width * height * 3; ++i)
    image.rgb.push_back(static_cast<uint8_t>((i * 7 + i / 251 + seed) % 256));
  return image;
}

TEST(Preprocess, PatchesEqualThoseOfTransformers) {
  int compared = 0;
  for (const Json& golden : goldens("pictures")) {
    const std::string name = golden.at("file");
    const media::Image image = media::load_image(data_path(name));
    if (golden.at("grid").is_null()) {
      EXPECT_THAT(error_of([&] { preprocess_image(image, {}, DType::kF32, name); }), HasSubstr("aspect ratio")) << name;
      continue;
    }
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Patches patches = preprocess_image(image, {}, dtype, name);
      const Json grid = {patches.grid_t, patches.grid_h, patches.grid_w};
      EXPECT_EQ(grid, golden.at("grid")) << name;
      EXPECT_EQ(patches.pixels.describe(),
                fmt::format("{}[{}, 1176]", dtype_name(dtype), patches.grid_h * patches.grid_w));
      const char* key = dtype == DType::kF32 ? "patches_f32" : "patches_bf16";
      EXPECT_EQ(crc(patches.pixels.data, patches.pixels.bytes()), golden.at(key).get<uint32_t>()) << name << " " << key;
      ++compared;
    }
  }
  EXPECT_GE(compared, 100);
}

TEST(Preprocess, SizesEqualThoseOfTransformers) {
  for (const Json& golden : goldens("sizes")) {
    const Size size = smart_resize(golden[0], golden[1], 28, golden[2], golden[3], "picture");
    EXPECT_EQ(size.height, golden[4]) << golden;
    EXPECT_EQ(size.width, golden[5]) << golden;
  }
}

TEST(Preprocess, SizesThatAreRefused) {
  EXPECT_EQ(smart_resize(200, 1, 28, 3136, 12845056, "p").height, 812);
  EXPECT_EQ(error_of([] { smart_resize(201, 1, 28, 3136, 12845056, "p"); }),
            "p: picture of 1x201 pixels, an aspect ratio up to 200 is allowed");
  EXPECT_EQ(error_of([] { smart_resize(0, 5, 28, 3136, 12845056, "p"); }), "p: picture of 5x0 pixels is empty");
  EXPECT_THAT(error_of([] { smart_resize(5, 5, 28, 0, 12845056, "p"); }), HasSubstr("would be resized to 0x0"));
  EXPECT_THAT(error_of([] { smart_resize(100, 100, 28, int64_t{1} << 60, int64_t{1} << 61, "p"); }),
              HasSubstr("between 1 and 268435456 pixels are possible"));
}

// The order (t, h / 2, w / 2, mh, mw, channel, tp, y, x), written from the definition.
TEST(Preprocess, OrderOfPatches) {
  const std::vector<media::Image> frames = {pattern(84, 56, 0), pattern(84, 56, 50), pattern(84, 56, 100)};
  PreprocessConfig config;
  config.mean[1] = 0.25;
  config.std[2] = 0.5;
  const Patches patches = patchify(frames, config, DType::kF32);
  ASSERT_EQ(patches.grid_t, 2);
  ASSERT_EQ(patches.grid_h, 4);
  ASSERT_EQ(patches.grid_w, 6);
  const auto* value = patches.pixels.as<float>();
  for (size_t t = 0; t < 2; ++t)
    for (int by = 0; by < 2; ++by)
      for (int bx = 0; bx < 3; ++bx)
        for (int my = 0; my < 2; ++my)
          for (int mx = 0; mx < 2; ++mx)
            for (size_t c = 0; c < 3; ++c)
              for (size_t slot = 0; slot < 2; ++slot)
                for (int y = 0; y < 14; ++y)
                  for (int x = 0; x < 14; ++x, ++value) {
                    const media::Image& frame = frames[std::min<size_t>(2, t * 2 + slot)];
                    const int row = (by * 2 + my) * 14 + y, column = (bx * 2 + mx) * 14 + x;
                    const uint8_t grey = frame.rgb[static_cast<size_t>((row * 84 + column) * 3) + c];
                    const auto scaled = static_cast<float>(grey * (1.0 / 255.0));
                    ASSERT_EQ(*value,
                              (scaled - static_cast<float>(config.mean[c])) / static_cast<float>(config.std[c]));
                  }
}

TEST(Preprocess, OnePictureFillsBothSlots) {
  const media::Image image = pattern(56, 56, 3);
  const Patches one = preprocess_image(image, {}, DType::kBF16, "p");
  const std::vector<media::Image> twice = {image, image};
  const Patches two = patchify(twice, {}, DType::kBF16);
  ASSERT_EQ(one.pixels.bytes(), two.pixels.bytes());
  EXPECT_EQ(std::memcmp(one.pixels.data, two.pixels.data, one.pixels.bytes()), 0);
}

media::Video clip(int frames, int width, int height, double fps) {
  media::Video video;
  for (int i = 0; i < frames; ++i) video.frames.push_back(pattern(width, height, i));
  video.fps = fps;
  return video;
}

TEST(Preprocess, VideoSizes) {
  const auto grid = [](const media::Video& video, const PreprocessConfig& config) {
    const Patches p = preprocess_video(video, config, DType::kBF16, "clip");
    return std::vector<int64_t>{p.grid_t, p.grid_h, p.grid_w};
  };
  using Grid = std::vector<int64_t>;
  PreprocessConfig config;
  EXPECT_EQ(grid(clip(3, 64, 48, 2), config), (Grid{2, 20, 28}));     // grows to 128 tokens a frame
  EXPECT_EQ(grid(clip(2, 1280, 720, 2), config), (Grid{1, 40, 72}));  // shrinks to 768
  config.video_total_pixels = 400000;                                 // 200000 a frame, counted by pairs
  EXPECT_EQ(grid(clip(4, 1280, 720, 2), config), (Grid{2, 22, 42}));
  config.video_total_pixels = 1;  // never below 1.05 of the minimum
  EXPECT_EQ(grid(clip(4, 1280, 720, 2), config), (Grid{2, 16, 30}));
  config.video_max_pixels = 30000;  // a request may
  config.video_min_pixels = 784;
  EXPECT_EQ(grid(clip(2, 640, 360, 2), {config}), (Grid{1, 2, 2}));
}

TEST(Preprocess, VideoFramesAreThePicturesOfTheSameLimits) {
  media::Video video = clip(2, 300, 200, 0.5);
  PreprocessConfig config;
  config.min_pixels = config.video_min_pixels;
  config.max_pixels = config.video_max_pixels;
  const Patches pair = preprocess_video(video, config, DType::kF32, "clip");
  EXPECT_DOUBLE_EQ(pair.second_per_grid, 4.0);
  for (size_t slot = 0; slot < 2; ++slot) {
    const Patches one = preprocess_image(video.frames[slot], config, DType::kF32, "p");
    ASSERT_EQ(one.pixels.bytes(), pair.pixels.bytes());
    for (int64_t row = 0; row < one.pixels.dim(0); ++row)
      for (size_t c = 0; c < 3; ++c) {
        const size_t at = (c * 2 + slot) * 196;
        ASSERT_EQ(std::memcmp(one.pixels.row<float>(row) + at, pair.pixels.row<float>(row) + at, 196 * 4), 0);
      }
  }
}

TEST(Preprocess, BadVideos) {
  media::Video video = clip(2, 64, 48, 2);
  video.frames.push_back(pattern(48, 64, 0));
  EXPECT_EQ(error_of([&] { preprocess_video(video, {}, DType::kF32, "clip"); }),
            "clip: frames of 64x48 and 48x64 pixels, expected one size");
  EXPECT_EQ(error_of([&] { preprocess_video({}, {}, DType::kF32, "clip"); }), "clip: video without frames");
  EXPECT_THAT(error_of([&] { preprocess_video(clip(2, 64, 48, 0), {}, DType::kF32, "clip"); }),
              HasSubstr("0 frames per second"));
}

TEST(PreprocessConfig, Defaults) {
  const auto config = PreprocessConfig::parse(Json::object(), "p.json");
  EXPECT_EQ(config.min_pixels, 3136);
  EXPECT_EQ(config.max_pixels, 28 * 28 * 1280);
  EXPECT_EQ(config.patch, 14);
  EXPECT_EQ(config.video_min_pixels, 100352);
  EXPECT_EQ(config.video_max_pixels, 602112);
}

TEST(PreprocessConfig, BothSpellingsOfTheLimits) {
  const auto parse = [](const char* text) { return PreprocessConfig::parse(Json::parse(text), "p.json"); };
  auto config = parse(R"({"min_pixels": 3136, "max_pixels": 12845056, "image_mean": [0.5, 0.25, 0.125]})");
  EXPECT_EQ(config.max_pixels, 12845056);
  EXPECT_EQ(config.mean[2], 0.125);
  config = parse(R"({"size": {"shortest_edge": 6272, "longest_edge": 500000}})");
  EXPECT_EQ(config.min_pixels, 6272);
  EXPECT_EQ(config.max_pixels, 500000);
  EXPECT_EQ(config.video_max_pixels, 500000);
  EXPECT_EQ(config.video_min_pixels, 100352);
  config = parse(R"({"size": {"shortest_edge": 6272, "longest_edge": 500000}, "max_pixels": 62720})");
  EXPECT_EQ(config.max_pixels, 62720);
  EXPECT_EQ(config.video_max_pixels, 62720);
  EXPECT_EQ(config.video_min_pixels, 6272);
}

TEST(PreprocessConfig, ErrorsNameTheKey) {
  const auto parse = [](const char* text) {
    return error_of([&] { PreprocessConfig::parse(Json::parse(text), "p.json"); });
  };
  EXPECT_EQ(parse("[]"), "p.json: expected an object");
  EXPECT_THAT(parse(R"({"min_pixels": 0})"), HasSubstr("p.json: min_pixels is 0, expected a whole number of 1 to"));
  EXPECT_THAT(parse(R"({"max_pixels": "many"})"), HasSubstr("max_pixels is \"many\""));
  EXPECT_THAT(parse(R"({"max_pixels": 1.5})"), HasSubstr("max_pixels is 1.5"));
  EXPECT_EQ(parse(R"({"min_pixels": 5000, "max_pixels": 4000})"),
            "p.json: max_pixels 4000 is less than min_pixels 5000");
  EXPECT_THAT(parse(R"({"patch_size": 1000000})"), HasSubstr("patch_size is 1000000"));
  EXPECT_THAT(parse(R"({"image_mean": [1, 2]})"), HasSubstr("image_mean is [1,2], expected three numbers"));
  EXPECT_THAT(parse(R"({"image_std": [1, 0, 1]})"), HasSubstr("image_std 0, expected more than 0"));
  EXPECT_THAT(parse(R"({"rescale_factor": -1})"), HasSubstr("rescale_factor -1"));
}

}  // namespace
}  // namespace saccade::qwen2_5_vl
