#include <gmock/gmock.h>

#include "media/goldens.h"
#include "models/deepseek_vl2/preprocess.h"

namespace saccade::deepseek_vl2 {
namespace {

using media::crc;
using media::data_path;
using media::error_of;

// tools/reference/preprocess_goldens_deepseek_vl2.py.
const Json& reference(const char* part) {
  static const Json all = read_json_file(data_path("deepseek_vl2.json"));
  return all.at(part);
}

const Config& small() {
  static const Config config = Config::published("deepseek-vl2-small");
  return config;
}

media::Image stored(const std::string& name) { return media::load_image(data_path(name), {}, false); }

// Every byte different from its neighbours.
media::Image pattern(int width, int height, int64_t seed) {
  media::Image image{width, height, {}};
  for (int64_t i = 0; i < int64_t{3} * width * height; ++i)
    image.rgb.push_back(static_cast<uint8_t>((i * 7 + i / 251 + seed) % 256));
  return image;
}

void expect_equal(const media::Image& image, const Json& golden, bool tiling, const std::string& name) {
  const Json& expected = golden.at(tiling ? "tiled" : "untiled");
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tiles tiles = preprocess(image, small(), tiling, dtype, name);
    EXPECT_EQ(Json({tiles.tiles.width, tiles.tiles.height}), expected.at("tiles")) << name;
    EXPECT_EQ(picture_tokens(tiles.tiles, small()), expected.at("tokens")) << name;
    EXPECT_EQ(tiles.picture, (Size{image.width, image.height}));
    EXPECT_EQ(tiles.pixels.describe(),
              fmt::format("{}[{}, 588]", dtype_name(dtype), (1 + tiles.tiles.width * tiles.tiles.height) * 729));
    const char* key = dtype == DType::kF32 ? "patches_f32" : "patches_bf16";
    EXPECT_EQ(crc(tiles.pixels.data, tiles.pixels.bytes()), expected.at(key).get<uint32_t>())
        << name << " " << key << (tiling ? "" : " untiled");
  }
}

TEST(DeepseekVl2Preprocess, FilesEqualTheReference) {
  ASSERT_GE(reference("pictures").size(), 60u);
  for (const Json& golden : reference("pictures")) {
    const std::string name = golden.at("file");
    const media::Image image = stored(name);
    ASSERT_EQ(crc(image.rgb.data(), image.rgb.size()), golden.at("rgb").get<uint32_t>()) << name;
    expect_equal(image, golden, true, name);
  }
}

TEST(DeepseekVl2Preprocess, OddSizesEqualTheReference) {
  ASSERT_GE(reference("patterns").size(), 20u);
  for (const Json& golden : reference("patterns")) {
    const int width = golden.at("width"), height = golden.at("height");
    const media::Image image = pattern(width, height, golden.at("seed"));
    for (const bool tiling : {true, false})
      expect_equal(image, golden, tiling, fmt::format("pattern {}x{}", width, height));
  }
}

TEST(DeepseekVl2Preprocess, PaddingEqualsPillows) {
  ASSERT_GE(reference("pads").size(), 15u);
  for (const Json& golden : reference("pads")) {
    const Size size{golden.at("width"), golden.at("height")};
    const media::Image padded = pad(stored(golden.at("file")), size);
    EXPECT_EQ(padded.width, size.width);
    EXPECT_EQ(padded.height, size.height);
    EXPECT_EQ(crc(padded.rgb.data(), padded.rgb.size()), golden.at("rgb").get<uint32_t>()) << golden;
  }
}

TEST(DeepseekVl2Preprocess, ResolutionsEqualTheReference) {
  ASSERT_GE(reference("resolutions").size(), 150u);
  for (const Json& golden : reference("resolutions"))
    EXPECT_EQ(best_resolution({golden[0], golden[1]}, small().resolutions), (Size{golden[2], golden[3]})) << golden;
}

TEST(DeepseekVl2Preprocess, ResolutionsByHand) {
  const auto& candidates = small().resolutions;
  EXPECT_EQ(best_resolution({300, 300}, candidates), (Size{384, 384}));
  EXPECT_EQ(best_resolution({640, 480}, candidates), (Size{768, 768}));
  EXPECT_EQ(best_resolution({1000, 747}, candidates), (Size{1152, 768}));  // 7 tiles with the whole view
  EXPECT_EQ(best_resolution({1920, 1080}, candidates), (Size{1536, 768}));
  EXPECT_EQ(best_resolution({4000, 400}, candidates), (Size{3456, 384}));
  EXPECT_EQ(best_resolution({385, 384}, candidates), (Size{768, 384}));
  // Equal in what is kept and wasted: the first wins.
  EXPECT_EQ(best_resolution({10, 10}, {{768, 384}, {384, 768}}), (Size{768, 384}));
  EXPECT_EQ(best_resolution({10, 10}, {{384, 768}, {768, 384}}), (Size{384, 768}));
  // Too thin for any candidate to keep a pixel: the one that wastes least.
  EXPECT_EQ(best_resolution({1, 20000}, candidates), (Size{384, 384}));
}

TEST(DeepseekVl2Preprocess, TokensOfEveryTiling) {
  ASSERT_EQ(reference("tokens").size(), 23u);
  for (const Json& golden : reference("tokens"))
    EXPECT_EQ(picture_tokens({golden[0], golden[1]}, small()), golden[2]) << golden;
  EXPECT_EQ(picture_tokens({1, 1}, small()), 421);
  EXPECT_EQ(picture_tokens({3, 2}, small()), 1415);
  EXPECT_EQ(picture_tokens({2, 3}, small()), 1429);
  EXPECT_EQ(picture_tokens({1, 9}, small()), 2101);
}

TEST(DeepseekVl2Preprocess, OnePictureByHand) {
  // 2 x 1 pixels on tiles of 4 with patches of 2, black left and white right: resized to 4 x 2, grey above and below.
  Config config;
  config.vision = {.layers = 1, .hidden = 2, .heads = 1, .patch = 2, .image_size = 4, .mlp_ratio = 4};
  config.resolutions = {{4, 4}, {8, 4}};
  const media::Image image{2, 1, {0, 0, 0, 255, 255, 255}};
  const Tiles tiles = preprocess(image, config, true, DType::kF32, "p");
  EXPECT_EQ(tiles.tiles, (Size{1, 1}));
  ASSERT_EQ(tiles.pixels.describe(), "F32[8, 12]");
  const float grey = (127.0f / 255.0f - 0.5f) / 0.5f;
  const float* p = tiles.pixels.as<float>();
  for (size_t patch = 0; patch < 8; ++patch) {
    const bool upper = patch % 4 < 2, left = patch % 2 == 0;
    for (size_t channel = 0; channel < 3; ++channel, p += 4) {
      EXPECT_EQ(p[upper ? 0 : 2], grey);  // the outer row of the patch
      EXPECT_EQ(p[upper ? 1 : 3], grey);
      EXPECT_EQ(p[upper ? (left ? 2 : 3) : (left ? 0 : 1)], left ? -1.0f : 1.0f);  // the outer column of the picture
    }
  }
}

TEST(DeepseekVl2Preprocess, RefusesAnEmptyPicture) {
  EXPECT_EQ(error_of([] { preprocess({}, small(), true, DType::kF32, "p.png"); }),
            "p.png: picture of 0x0 pixels is empty");
  EXPECT_EQ(error_of([] {
              preprocess({5, 0, {}}, small(), false, DType::kBF16, "p.png");
            }),
            "p.png: picture of 5x0 pixels is empty");
}

}  // namespace
}  // namespace saccade::deepseek_vl2
