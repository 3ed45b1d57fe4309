// Qwen2.5-VL preprocessing: smart resize, normalisation, patch order. Reproduces transformers 5.17's Pillow image
// processor (Qwen2VLImageProcessorPil); see docs/preprocessing.md.
#pragma once

#include <array>

#include "base/json.h"
#include "media/video.h"
#include "tensor/arena.h"

namespace saccade::qwen2_5_vl {

// preprocessor_config.json. The values here are those of the published checkpoints; keys missing in a file take the
// class defaults of transformers, which differ in max_pixels.
struct PreprocessConfig {
  int64_t min_pixels = 56 * 56, max_pixels = int64_t{28} * 28 * 16384;  // area of an image
  // Area of one frame of a video, and of all sampled frames together: qwen-vl-utils' limits, which no file holds. A
  // file lowers video_max_pixels to its max_pixels; if that is below video_min_pixels, min_pixels holds for frames as
  // well.
  int64_t video_min_pixels = 28 * 28 * 128, video_max_pixels = 28 * 28 * 768;
  int64_t video_total_pixels = 90316800;  // int(128000 tokens * 28 * 28 * 0.9)
  int patch = 14, merge = 2, temporal_patch = 2;
  double rescale = 1.0 / 255.0;
  double mean[3] = {0.48145466, 0.4578275, 0.40821073};
  double std[3] = {0.26862954, 0.26130258, 0.27577711};

  // Reads min_pixels and max_pixels, or size {shortest_edge, longest_edge}, which are areas as well; patch_size,
  // merge_size, temporal_patch_size, rescale_factor, image_mean, image_std. Throws Error naming origin and key.
  static PreprocessConfig parse(const Json& json, const std::string& origin);
};

// What each of the 256 grey levels of each channel becomes.
using GreyLevels = std::array<std::array<float, 256>, 3>;
GreyLevels grey_levels(const PreprocessConfig& config);

struct Size {
  int height = 0, width = 0;
};

// Both sides divisible by `factor`, area within [min_pixels, max_pixels], aspect kept as far as possible. Python's
// rounding. Throws Error naming `origin` when the aspect ratio is over 200.
Size smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels, const std::string& origin);

// Sizes that a picture and the frames of a clip are resized to: for a clip smart_resize(video_min_pixels, the smaller
// of video_max_pixels and an even share of video_total_pixels that is at least 1.05 * video_min_pixels). Throw Error,
// also for a clip without frames, with frames of several sizes or without a rate.
Size size_of(const media::Image& image, const PreprocessConfig& config, const std::string& origin);
Size size_of(const media::Video& video, const PreprocessConfig& config, const std::string& origin);

struct Patches {
  Buffer buffer;
  Tensor pixels;                               // [gt*gh*gw, 3*2*14*14], F32 or BF16, order of transformers
  int64_t grid_t = 0, grid_h = 0, grid_w = 0;  // in patches
  double second_per_grid = 0;                  // video only: temporal_patch / frames per second
};

// Frames of equal size, already resized to multiples of patch * merge; an odd number repeats the last. Normalised as
// the Pillow image processor does it, videos as well.
Patches patchify(std::span<const media::Image> frames, const PreprocessConfig& config, DType dtype);

Patches preprocess_image(const media::Image& image, const PreprocessConfig& config, DType dtype,
                         const std::string& origin);
Patches preprocess_video(const media::Video& video, const PreprocessConfig& config, DType dtype,
                         const std::string& origin);

}  // namespace saccade::qwen2_5_vl
