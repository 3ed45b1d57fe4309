// Qwen2.5-VL preprocessing: smart resize, normalisation, patch order. Reproduces transformers 5.17's Pillow image
// processor (Qwen2VLImageProcessorPil); see docs/preprocessing.md.
#pragma once

#include "base/json.h"
#include "media/video.h"
#include "tensor/arena.h"

namespace saccade::qwen2_5_vl {

// preprocessor_config.json, class defaults where keys are missing.
struct PreprocessConfig {
  int64_t min_pixels = 56 * 56, max_pixels = int64_t{28} * 28 * 16384;  // area
  int patch = 14, merge = 2, temporal_patch = 2;
  double rescale = 1.0 / 255.0;
  double mean[3] = {0.48145466, 0.4578275, 0.40821073};
  double std[3] = {0.26862954, 0.26130258, 0.27577711};

  static PreprocessConfig parse(const Json& json, const std::string& origin);
};

struct Size {
  int height = 0, width = 0;
};

// Both sides divisible by `factor`, area within [min_pixels, max_pixels], aspect kept as far as possible. Python's
// rounding. Throws Error naming `origin` when the aspect ratio is over 200.
Size smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels, const std::string& origin);

struct Patches {
  Buffer buffer;
  Tensor pixels;                               // [gt*gh*gw, 3*2*14*14], F32 or BF16, order of transformers
  int64_t grid_t = 0, grid_h = 0, grid_w = 0;  // in patches
  double second_per_grid = 0;                  // video only
};

// Frames of equal size, already resized to multiples of 28; an odd number repeats the last.
Patches patchify(std::span<const media::Image> frames, const PreprocessConfig& config, DType dtype);

Patches preprocess_image(const media::Image& image, const PreprocessConfig& config, DType dtype,
                         const std::string& origin);
// min_pixels and max_pixels of a request are already in `config`; total_pixels limits all frames together.
Patches preprocess_video(const media::Video& video, const PreprocessConfig& config, DType dtype,
                         const std::string& origin);

}  // namespace saccade::qwen2_5_vl
