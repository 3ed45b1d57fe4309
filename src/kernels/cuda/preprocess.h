// From decoded pixels to the patches of a vision tower, bit-equal to media::resize_bicubic and the models' patchify.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"
#include "tensor/tensor.h"

namespace saccade::cuda {

// The taps of one axis of Pillow's bicubic resize (media::bicubic_resampling), in device memory; empty where the size
// of that axis does not change.
struct ResizeAxis {
  Tensor begins;   // [out] I32: first input pixel
  Tensor weights;  // [out, taps] I32: fixed point, 22 bits, zero beyond a pixel's own count

  explicit operator bool() const { return static_cast<bool>(begins); }
};

// rgb [F, h, w, 3] U8 -> out [F, oh, ow, 3] U8. `scratch` U8 is the picture between two passes, rounded as Pillow
// does: [F, h, ow, 3], or [F, oh, w, 3] to go down first (media::down_before_across). One pass needs none.
void resize_bicubic(Stream stream, const Tensor& rgb, const ResizeAxis& x, const ResizeAxis& y, const Tensor& scratch,
                    const Tensor& out);

// frames [F, gh*patch, gw*patch, 3] U8 -> y [gt*gh*gw, 3*temporal*patch*patch] BF16, rows in the order (t, gh/merge,
// gw/merge, merge, merge), values (channel, temporal, y, x); levels [3,256] BF16 maps grey levels. F = gt*temporal, or
// F frames of which the last is repeated. `unit_order` [gt*gh*gw/merge^2] I32: merge unit i of y is unit
// unit_order[i] of that order; empty for the order itself.
void patchify(Stream stream, const Tensor& frames, const Tensor& levels, int patch, int merge, int temporal,
              const Tensor& unit_order, const Tensor& y);

}  // namespace saccade::cuda
