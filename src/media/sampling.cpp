#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "media/video.h"

namespace saccade::media {
namespace {

constexpr int kFrameFactor = 2;
constexpr double kDefaultFps = 2.0;

int64_t floor_even(double value) { return static_cast<int64_t>(std::floor(value / kFrameFactor)) * kFrameFactor; }

}  // namespace

std::vector<int64_t> sample_frames(int64_t total, double video_fps, const VideoSampling& sampling) {
  if (total < 1) fail("video has no frames");
  if (sampling.fps && sampling.num_frames) fail("fps and num_frames exclude each other, one of them is expected");
  int64_t count = 0;
  if (sampling.num_frames) {
    count = static_cast<int64_t>(std::nearbyint(*sampling.num_frames / 2.0)) * kFrameFactor;
  } else {
    const double fps = sampling.fps.value_or(kDefaultFps);
    if (!(std::isfinite(fps) && fps > 0)) fail("fps is {}, expected more than 0", fps);
    if (!(std::isfinite(video_fps) && video_fps > 0))
      fail("video of {} frames per second, expected more than 0", video_fps);
    const auto frames = static_cast<double>(total);
    const double least = std::ceil(static_cast<double>(sampling.min_frames) / kFrameFactor) * kFrameFactor;
    const auto most = static_cast<double>(floor_even(std::min(static_cast<double>(sampling.max_frames), frames)));
    count = floor_even(std::min(std::min(std::max(frames / video_fps * fps, least), most), frames));
  }
  if (count < kFrameFactor || count > total)
    fail("{} frames would be sampled of a video of {}, expected {} to {}", count, total, kFrameFactor, total);

  // torch.linspace(0, total - 1, count) in float32, from both ends to the middle and with a fused multiply-add as
  // torch's AVX2 and AVX-512 builds compute it, rounded half to even.
  std::vector<int64_t> indices(static_cast<size_t>(count));
  const auto end = static_cast<float>(total - 1), step = end / static_cast<float>(count - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float at =
        i < count / 2 ? step * static_cast<float>(i) : std::fma(-step, static_cast<float>(count - 1 - i), end);
    indices[static_cast<size_t>(i)] = std::clamp<int64_t>(static_cast<int64_t>(std::nearbyint(at)), 0, total - 1);
  }
  return indices;
}

Video load_frames(const std::vector<std::string>& paths, double fps, const ImageLimits& limits) {
  if (paths.empty()) fail("video: the list of frames is empty");
  if (!(std::isfinite(fps) && fps > 0)) fail("{}: fps of the frames is {}, expected more than 0", paths.front(), fps);
  Video video;
  video.fps = fps;
  video.frames.resize(paths.size());
  parallel_pieces(paths.size(), [&](size_t i) { video.frames[i] = load_image(paths[i], limits); });
  const Image& first = video.frames.front();
  for (size_t i = 1; i < paths.size(); ++i) {
    const Image& frame = video.frames[i];
    if (frame.width != first.width || frame.height != first.height)
      fail("{}: frame of {}x{} pixels, the first one ({}) has {}x{}", paths[i], frame.width, frame.height,
           paths.front(), first.width, first.height);
  }
  if (video.frames.size() % kFrameFactor != 0) video.frames.push_back(video.frames.back());
  for (size_t i = 0; i < video.frames.size(); ++i) {
    video.indices.push_back(static_cast<int64_t>(i));
    video.timestamps.push_back(static_cast<double>(i) / fps);
  }
  return video;
}

}  // namespace saccade::media
