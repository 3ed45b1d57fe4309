// Patches made on a CUDA device from decoded pixels, bit-equal to preprocess.h.
#pragma once

#include "models/qwen2_5_vl/preprocess.h"
#include "ops/ops.h"

namespace saccade::qwen2_5_vl {

// Frames of one size, resized to `size` -> pixels [P, 3*temporal*patch*patch] BF16 in ctx.arena, rows as patchify()
// orders them.
Tensor patches_on_device(const Ctx& c, std::span<const media::Image> frames, Size size, const PreprocessConfig& config);

}  // namespace saccade::qwen2_5_vl
