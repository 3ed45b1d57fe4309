#include "kernels/cuda/preprocess.h"

#include <algorithm>
#include <numeric>

#include "cuda/cuda_test.h"
#include "media/image.h"
#include "media/resample.h"
#include "models/qwen2_5_vl/device_patches.h"

namespace saccade {
namespace {

using media::Image;
using Frames = std::vector<Image>;

class Preprocess : public CudaTest {
 protected:
  // Extremes make the sums overshoot, so that clipping is met.
  Frames noise(int frames, int width, int height) {
    Frames all(static_cast<size_t>(frames), Image{width, height, {}});
    for (Image& image : all) {
      image.rgb.resize(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
      for (uint8_t& v : image.rgb) v = static_cast<uint8_t>(rng_() % 4 == 0 ? rng_() % 256 : rng_() % 2 * 255);
    }
    return all;
  }

  Tensor upload(const Frames& frames) {
    std::vector<uint8_t> bytes;
    for (const Image& image : frames) bytes.insert(bytes.end(), image.rgb.begin(), image.rgb.end());
    return memory_.upload(DType::kU8, {std::ssize(frames), frames[0].height, frames[0].width, 3}, bytes.data());
  }

  cuda::ResizeAxis axis(int in, int out) {
    if (in == out) return {};
    const media::Resampling plan = media::bicubic_resampling(in, out);
    return {memory_.upload(DType::kI32, {out}, plan.first.data()),
            memory_.upload(DType::kI32, {out, plan.taps}, plan.weights.data())};
  }

  void check_resize(int frames, int w, int h, int ow, int oh) {
    SCOPED_TRACE(fmt::format("{} of {}x{} to {}x{}", frames, w, h, ow, oh));
    const Frames in = noise(frames, w, h);
    const bool down_first = media::down_before_across(w, h, ow, oh);
    const Tensor out = memory_.poison(DType::kU8, {frames, oh, ow, 3});
    Tensor scratch;
    if (w != ow && h != oh)
      scratch =
          down_first ? memory_.poison(DType::kU8, {frames, oh, w, 3}) : memory_.poison(DType::kU8, {frames, h, ow, 3});
    cuda::resize_bicubic(nullptr, upload(in), axis(w, ow), axis(h, oh), scratch, out);
    std::vector<uint8_t> expected;
    for (const Image& image : in) {
      const Image resized = media::resize_bicubic(image, ow, oh);
      expected.insert(expected.end(), resized.rgb.begin(), resized.rgb.end());
    }
    EXPECT_EQ(download<uint8_t>(out), expected);
  }

  Tensor levels(const qwen2_5_vl::PreprocessConfig& config) {
    std::vector<BFloat16> values;
    for (const auto& channel : qwen2_5_vl::grey_levels(config))
      for (const float v : channel) values.push_back(BFloat16(v));
    return memory_.upload(DType::kBF16, {3, 256}, values.data());
  }

  void check_patchify(int frames, int w, int h, int patch, int merge, int temporal) {
    SCOPED_TRACE(fmt::format("{} of {}x{}, patch {}, merge {}, temporal {}", frames, w, h, patch, merge, temporal));
    qwen2_5_vl::PreprocessConfig config;
    config.patch = patch;
    config.merge = merge;
    config.temporal_patch = temporal;
    const Frames in = noise(frames, w, h);
    const qwen2_5_vl::Patches patches = qwen2_5_vl::patchify(in, config, DType::kBF16);
    const int64_t rows = patches.pixels.dim(0), columns = patches.pixels.dim(1), units = rows / (merge * merge);
    const auto unit_values = static_cast<size_t>(merge * merge * columns);
    const auto* expected = reinterpret_cast<const uint16_t*>(patches.buffer.data());
    const Tensor pixels = upload(in), table = levels(config);

    const Tensor plain = memory_.poison(DType::kBF16, {rows, columns});
    cuda::patchify(nullptr, pixels, table, patch, merge, temporal, {}, plain);
    EXPECT_EQ(download<uint16_t>(plain),
              std::vector<uint16_t>(expected, expected + static_cast<size_t>(units) * unit_values));

    std::vector<int32_t> order(static_cast<size_t>(units));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng_);
    const Tensor ordered = memory_.poison(DType::kBF16, {rows, columns});
    cuda::patchify(nullptr, pixels, table, patch, merge, temporal, memory_.upload(DType::kI32, {units}, order.data()),
                   ordered);
    std::vector<uint16_t> reordered;
    for (const int32_t unit : order) {
      const uint16_t* from = expected + static_cast<size_t>(unit) * unit_values;
      reordered.insert(reordered.end(), from, from + unit_values);
    }
    EXPECT_EQ(download<uint16_t>(ordered), reordered);
  }

  // As the model makes them of pictures of any size, those that keep their size among them.
  void check_pictures(int frames, int w, int h, int ow, int oh) {
    SCOPED_TRACE(fmt::format("{} of {}x{} to {}x{}", frames, w, h, ow, oh));
    const qwen2_5_vl::PreprocessConfig config;
    const Frames in = noise(frames, w, h);
    Frames resized;
    for (const Image& image : in) resized.push_back(media::resize_bicubic(image, ow, oh));
    const qwen2_5_vl::Patches patches = qwen2_5_vl::patchify(resized, config, DType::kBF16);

    ThreadPool pool(1);
    Arena arena(size_t{16} << 20, Memory::kCuda);
    const Stream stream = device::new_stream();
    const Tensor found = qwen2_5_vl::patches_on_device({pool, arena, nullptr, stream}, in, {oh, ow}, config);
    device::synchronize(stream);
    const auto* expected = reinterpret_cast<const uint16_t*>(patches.buffer.data());
    EXPECT_EQ(download<uint16_t>(found), std::vector<uint16_t>(expected, expected + found.numel()));
    device::delete_stream(stream);
  }

  std::mt19937 rng_{std::random_device{}()};
  DeviceMemory memory_;
};

TEST_F(Preprocess, ResizeEqualsTheCpu) {
  for (const int frames : {1, 3})
    for (const auto& [w, h] : {std::pair(1, 1), std::pair(7, 5), std::pair(33, 28), std::pair(131, 93)})
      for (const int ow : {1, 3, 28, 56, 171})
        for (const int oh : {1, 28, 95})
          if (w != ow || h != oh) check_resize(frames, w, h, ow, oh);
}

TEST_F(Preprocess, ResizeOfThinAndLargePictures) {
  check_resize(1, 1, 1000, 28, 980);
  check_resize(1, 1000, 1, 2044, 28);
  check_resize(1, 997, 613, 1008, 616);  // up
  check_resize(1, 997, 613, 252, 168);   // down, many taps
  check_resize(1, 613, 997, 616, 140);   // down first
  check_resize(2, 997, 613, 997, 616);   // one pass, rows of no whole number of words
  check_resize(2, 997, 613, 504, 613);
}

TEST_F(Preprocess, PatchesEqualTheCpu) {
  check_patchify(1, 56, 84, 14, 2, 2);  // an image: its one frame stands twice
  check_patchify(5, 84, 28, 14, 2, 2);
  check_patchify(4, 28, 56, 14, 2, 2);
  check_patchify(3, 15, 30, 5, 3, 2);  // odd planes
  check_patchify(3, 64, 32, 16, 1, 1);
  check_patchify(4, 136, 68, 34, 2, 3);  // more values than threads
}

TEST_F(Preprocess, PicturesOfEverySizeEqualTheCpu) {
  check_pictures(1, 61, 47, 56, 56);
  check_pictures(3, 47, 56, 56, 56);
  check_pictures(3, 56, 47, 56, 56);
  check_pictures(1, 56, 84, 56, 84);
  check_pictures(4, 84, 56, 84, 56);
}

}  // namespace
}  // namespace saccade
