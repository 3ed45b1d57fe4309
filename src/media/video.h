// Clips: decoded frames chosen by qwen-vl-utils' sampling rules.
#pragma once

#include <optional>

#include "media/image.h"

namespace saccade::media {

struct VideoSampling {
  std::optional<double> fps;      // default 2
  std::optional<int> num_frames;  // instead of fps
  int min_frames = 4, max_frames = 768;
};

struct VideoLimits {
  int64_t max_bytes = int64_t{4} << 30;  // of the file
  int64_t max_frame_pixels = int64_t{8192} * 8192;
  int64_t max_total_frames = 1000000;            // walked through
  int64_t max_decoded_bytes = int64_t{2} << 30;  // RGB bytes kept
};

struct Video {
  std::vector<Image> frames;
  std::vector<int64_t> indices;    // of the sampled frames in the clip
  std::vector<double> timestamps;  // seconds
  double fps = 0;                  // frames per second of the samples
};

// Frame numbers to keep of a clip of `total` frames at `video_fps`. Throws Error when no valid number of frames exists.
std::vector<int64_t> sample_frames(int64_t total, double video_fps, const VideoSampling& sampling);

Video load_video(const std::string& path, const VideoSampling& sampling, const VideoLimits& limits = {});
// Pictures as frames, in order, padded to an even number by repeating the last.
Video load_frames(const std::vector<std::string>& paths, double fps, const ImageLimits& limits = {});

}  // namespace saccade::media
