#include "models/qwen2_5_vl/device_patches.h"

#include "media/resample.h"

namespace saccade::qwen2_5_vl {
namespace {

ops::ResizeAxis axis(const Ctx& c, int in, int out) {
  if (in == out) return {};
  const media::Resampling plan = media::bicubic_resampling(in, out);
  return {ops::upload(c, Tensor(plan.first.data(), DType::kI32, {out})),
          ops::upload(c, Tensor(plan.weights.data(), DType::kI32, {out, plan.taps}))};
}

}  // namespace

Tensor patches_on_device(const Ctx& c, std::span<const media::Image> frames, Size size,
                         const PreprocessConfig& config) {
  const int width = frames[0].width, height = frames[0].height;
  const Tensor rgb = c.arena.tensor(DType::kU8, {std::ssize(frames), height, width, 3});
  for (int64_t i = 0; i < rgb.dim(0); ++i) {
    const media::Image& frame = frames[static_cast<size_t>(i)];
    ops::upload_(c, rgb[i], Tensor(frame.rgb.data(), DType::kU8, {height, width, 3}));
  }
  std::array<BFloat16, 3 * 256> levels;
  size_t at = 0;
  for (const auto& channel : grey_levels(config))
    for (const float value : channel) levels[at++] = BFloat16(value);
  const Tensor table = ops::upload(c, Tensor(levels.data(), DType::kBF16, {3, 256}));
  const Tensor resized = ops::resize_bicubic(c, rgb, axis(c, width, size.width), axis(c, height, size.height),
                                             media::down_before_across(width, height, size.width, size.height));
  return ops::patchify(c, resized, table, config.patch, config.merge, config.temporal_patch);
}

}  // namespace saccade::qwen2_5_vl
