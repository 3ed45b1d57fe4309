#include "models/qwen2_5_vl/preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace saccade::qwen2_5_vl {
namespace {

// Of a resized frame. A request's limits may ask for anything; this is what memory allows.
constexpr int64_t kMaxTarget = int64_t{1} << 28;

int64_t whole(const Json& json, const char* key, int64_t missing, int64_t min, int64_t max, const std::string& origin) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return missing;
  // Python writes whole numbers, but nothing keeps an editor from 1e6.
  const double value = it->is_number() ? it->get<double>() : std::nan("");
  if (!(value >= static_cast<double>(min) && value <= static_cast<double>(max)) || value != std::floor(value))
    fail("{}: {} is {}, expected a whole number of {} to {}", origin, key, it->dump(), min, max);
  return static_cast<int64_t>(value);
}

void number(const Json& json, const char* key, double& value, const std::string& origin) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return;
  if (!it->is_number()) fail("{}: {} is {}, expected a number", origin, key, it->dump());
  value = it->get<double>();
}

void three_numbers(const Json& json, const char* key, double (&values)[3], const std::string& origin) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return;
  const auto is_number = [](const Json& entry) { return entry.is_number(); };
  if (!it->is_array() || it->size() != 3 || !std::all_of(it->begin(), it->end(), is_number))
    fail("{}: {} is {}, expected three numbers", origin, key, it->dump());
  for (size_t i = 0; i < 3; ++i) values[i] = (*it)[i].get<double>();
}

// One patch of one frame: out [3, temporal_patch, patch, patch] from slot `t` on.
template <class T>
void write_patch(const uint8_t* rgb, size_t row_bytes, const std::array<std::array<T, 256>, 3>& levels, size_t patch,
                 size_t channel_stride, T* out) {
  for (size_t y = 0; y < patch; ++y, rgb += row_bytes, out += patch) {
    for (size_t x = 0; x < patch; ++x) {
      const uint8_t* p = rgb + 3 * x;
      out[x] = levels[0][p[0]];
      out[x + channel_stride] = levels[1][p[1]];
      out[x + 2 * channel_stride] = levels[2][p[2]];
    }
  }
}

// Rows in the order (t, h / merge, w / merge, merge_h, merge_w), values (channel, temporal_patch, y, x).
template <class T>
void write_patches(std::span<const media::Image* const> frames, const PreprocessConfig& config,
                   const Patches& patches) {
  const GreyLevels levels = grey_levels(config);
  std::array<std::array<T, 256>, 3> table;
  for (size_t c = 0; c < 3; ++c)
    for (size_t v = 0; v < 256; ++v) table[c][v] = T(levels[c][v]);
  const auto patch = static_cast<size_t>(config.patch), merge = static_cast<size_t>(config.merge);
  const auto temporal = static_cast<size_t>(config.temporal_patch);
  const size_t plane = patch * patch, channel = temporal * plane;
  const size_t row_bytes = static_cast<size_t>(frames[0]->width) * 3;
  const auto height = static_cast<size_t>(patches.grid_h), width = static_cast<size_t>(patches.grid_w);
  T* out = patches.pixels.as<T>();
  for (size_t t = 0; t < static_cast<size_t>(patches.grid_t); ++t) {
    for (size_t by = 0; by < height; by += merge)
      for (size_t bx = 0; bx < width; bx += merge)
        for (size_t y = by; y < by + merge; ++y)
          for (size_t x = bx; x < bx + merge; ++x, out += 3 * channel)
            for (size_t slot = 0; slot < temporal; ++slot) {
              const media::Image* frame = frames[t * temporal + slot];
              if (slot > 0 && frame == frames[t * temporal + slot - 1]) {  // a repeated frame
                for (size_t c = 0; c < 3; ++c)
                  std::memcpy(out + c * channel + slot * plane, out + c * channel + (slot - 1) * plane,
                              plane * sizeof(T));
                continue;
              }
              const uint8_t* rgb = frame->rgb.data() + y * patch * row_bytes + x * patch * 3;
              write_patch(rgb, row_bytes, table, patch, channel, out + slot * plane);
            }
  }
}

}  // namespace

PreprocessConfig PreprocessConfig::parse(const Json& json, const std::string& origin) {
  if (!json.is_object()) fail("{}: expected an object", origin);
  PreprocessConfig config;
  constexpr int64_t kMostPixels = int64_t{1} << 40;
  config.max_pixels = int64_t{28} * 28 * 1280;
  if (const auto size = json.find("size"); size != json.end() && size->is_object()) {
    config.min_pixels = whole(*size, "shortest_edge", config.min_pixels, 1, kMostPixels, origin);
    config.max_pixels = whole(*size, "longest_edge", config.max_pixels, 1, kMostPixels, origin);
  }
  config.min_pixels = whole(json, "min_pixels", config.min_pixels, 1, kMostPixels, origin);
  config.max_pixels = whole(json, "max_pixels", config.max_pixels, 1, kMostPixels, origin);
  if (config.max_pixels < config.min_pixels)
    fail("{}: max_pixels {} is less than min_pixels {}", origin, config.max_pixels, config.min_pixels);
  if (config.max_pixels < config.video_min_pixels) config.video_min_pixels = config.min_pixels;
  config.video_max_pixels = std::min(config.video_max_pixels, config.max_pixels);
  config.patch = static_cast<int>(whole(json, "patch_size", config.patch, 1, 64, origin));
  config.merge = static_cast<int>(whole(json, "merge_size", config.merge, 1, 8, origin));
  config.temporal_patch = static_cast<int>(whole(json, "temporal_patch_size", config.temporal_patch, 1, 8, origin));
  number(json, "rescale_factor", config.rescale, origin);
  if (!(config.rescale > 0)) fail("{}: rescale_factor {}, expected more than 0", origin, config.rescale);
  three_numbers(json, "image_mean", config.mean, origin);
  three_numbers(json, "image_std", config.std, origin);
  for (const double value : config.std)
    if (!(value > 0)) fail("{}: image_std {}, expected more than 0", origin, value);
  return config;
}

// transformers' rescale (float64, rounded to float32) and normalize (float32), one after the other.
GreyLevels grey_levels(const PreprocessConfig& config) {
  GreyLevels levels;
  for (size_t c = 0; c < 3; ++c) {
    const auto mean = static_cast<float>(config.mean[c]), std = static_cast<float>(config.std[c]);
    for (size_t v = 0; v < 256; ++v)
      levels[c][v] = (static_cast<float>(static_cast<double>(v) * config.rescale) - mean) / std;
  }
  return levels;
}

Size smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels,
                  const std::string& origin) {
  if (height < 1 || width < 1) fail("{}: picture of {}x{} pixels is empty", origin, width, height);
  constexpr int kMaxRatio = 200;
  if (static_cast<double>(std::max(height, width)) / std::min(height, width) > kMaxRatio)
    fail("{}: picture of {}x{} pixels, an aspect ratio up to {} is allowed", origin, width, height, kMaxRatio);
  const double h = height, w = width, f = factor;
  // nearbyint rounds halves to even, as Python does.
  double h_bar = std::nearbyint(h / f) * f, w_bar = std::nearbyint(w / f) * f;
  const auto min = static_cast<double>(min_pixels), max = static_cast<double>(max_pixels);
  if (h_bar * w_bar > max) {
    const double beta = std::sqrt(h * w / max);
    h_bar = std::max(f, std::floor(h / beta / f) * f);
    w_bar = std::max(f, std::floor(w / beta / f) * f);
  } else if (h_bar * w_bar < min) {
    const double beta = std::sqrt(min / (h * w));
    h_bar = std::ceil(h * beta / f) * f;
    w_bar = std::ceil(w * beta / f) * f;
  }
  if (!(h_bar >= 1 && w_bar >= 1 && h_bar * w_bar <= static_cast<double>(kMaxTarget)))
    fail(
        "{}: {}x{} pixels would be resized to {}x{}; between 1 and {} pixels are possible (min_pixels {}, max_pixels "
        "{})",
        origin, width, height, w_bar, h_bar, kMaxTarget, min_pixels, max_pixels);
  return {static_cast<int>(h_bar), static_cast<int>(w_bar)};
}

Patches patchify(std::span<const media::Image> images, const PreprocessConfig& config, DType dtype) {
  CHECK(!images.empty(), "no frames");
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "patches as {}", dtype_name(dtype));
  const int factor = config.patch * config.merge, width = images[0].width, height = images[0].height;
  CHECK(width > 0 && height > 0 && width % factor == 0 && height % factor == 0, "frame of {}x{}", width, height);
  std::vector<const media::Image*> frames;
  for (const media::Image& image : images) {
    CHECK(image.width == width && image.height == height, "frames of {}x{} and {}x{}", width, height, image.width,
          image.height);
    frames.push_back(&image);
  }
  while (frames.size() % static_cast<size_t>(config.temporal_patch) != 0) frames.push_back(frames.back());

  Patches patches;
  patches.grid_t = static_cast<int64_t>(frames.size()) / config.temporal_patch;
  patches.grid_h = height / config.patch;
  patches.grid_w = width / config.patch;
  const int64_t rows = patches.grid_t * patches.grid_h * patches.grid_w;
  const int64_t columns = int64_t{3} * config.temporal_patch * config.patch * config.patch;
  patches.buffer = Buffer(static_cast<size_t>(rows * columns) * dtype_size(dtype));
  patches.pixels = Tensor(patches.buffer.data(), dtype, {rows, columns});
  if (dtype == DType::kF32)
    write_patches<float>(frames, config, patches);
  else
    write_patches<BFloat16>(frames, config, patches);
  return patches;
}

Size size_of(const media::Image& image, const PreprocessConfig& config, const std::string& origin) {
  return smart_resize(image.height, image.width, config.patch * config.merge, config.min_pixels, config.max_pixels,
                      origin);
}

Size size_of(const media::Video& video, const PreprocessConfig& config, const std::string& origin) {
  if (video.frames.empty()) fail("{}: video without frames", origin);
  if (!(video.fps > 0)) fail("{}: video at {} frames per second, expected more than 0", origin, video.fps);
  const int width = video.frames[0].width, height = video.frames[0].height;
  for (const media::Image& frame : video.frames)
    if (frame.width != width || frame.height != height)
      fail("{}: frames of {}x{} and {}x{} pixels, expected one size", origin, width, height, frame.width, frame.height);
  const int64_t share = config.video_total_pixels * config.temporal_patch / static_cast<int64_t>(video.frames.size());
  const auto least = static_cast<int64_t>(static_cast<double>(config.video_min_pixels) * 1.05);
  const int64_t most = std::min(config.video_max_pixels, std::max(share, least));
  return smart_resize(height, width, config.patch * config.merge, config.video_min_pixels, most, origin);
}

Patches preprocess_image(const media::Image& image, const PreprocessConfig& config, DType dtype,
                         const std::string& origin) {
  const Size size = size_of(image, config, origin);
  if (size.width == image.width && size.height == image.height) return patchify({&image, 1}, config, dtype);
  const media::Image resized = media::resize_bicubic(image, size.width, size.height);
  return patchify({&resized, 1}, config, dtype);
}

Patches preprocess_video(const media::Video& video, const PreprocessConfig& config, DType dtype,
                         const std::string& origin) {
  const Size size = size_of(video, config, origin);
  Patches patches;
  if (size.width == video.frames[0].width && size.height == video.frames[0].height) {
    patches = patchify(video.frames, config, dtype);
  } else {
    std::vector<media::Image> resized;
    for (const media::Image& frame : video.frames)
      resized.push_back(media::resize_bicubic(frame, size.width, size.height));
    patches = patchify(resized, config, dtype);
  }
  patches.second_per_grid = config.temporal_patch / video.fps;
  return patches;
}

}  // namespace saccade::qwen2_5_vl
