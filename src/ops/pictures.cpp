#include "kernels/cuda/preprocess.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {

Tensor resize_bicubic(const Ctx& c, const Tensor& rgb, const ResizeAxis& x, const ResizeAxis& y, bool down_first) {
  Dim f{"F"}, h{"h"}, w{"w"};
  expect(rgb, "rgb").shape(f, h, w, 3).dtype(DType::kU8).contiguous();
  if (!x && !y) return rgb;
  const int64_t oh = y ? y.begins.dim(0) : h.size, ow = x ? x.begins.dim(0) : w.size;
  const Tensor out = c.arena.tensor(DType::kU8, {f, oh, ow, 3});
  const Tensor between =
      !x || !y ? Tensor() : c.arena.tensor(DType::kU8, {f, down_first ? oh : h.size, down_first ? w.size : ow, 3});
  CHECK(c.cuda(), "the host resizes in media::resize_bicubic");
  if constexpr (kCuda) {
    cuda::resize_bicubic(c.stream, rgb, x, y, between, out);
  }
  return out;
}

Tensor patchify(const Ctx& c, const Tensor& frames, const Tensor& levels, int patch, int merge, int temporal) {
  Dim f{"F"}, h{"h"}, w{"w"};
  expect(frames, "frames").shape(f, h, w, 3).dtype(DType::kU8).contiguous();
  expect(levels, "levels").shape(3, 256).dtype(DType::kBF16).contiguous();
  CHECK(h % (patch * merge) == 0 && w % (patch * merge) == 0, "frames of {}x{}", w.size, h.size);
  const int64_t rows = (f + temporal - 1) / temporal * (h / patch) * (w / patch);
  const Tensor y = c.arena.tensor(DType::kBF16, {rows, int64_t{3} * temporal * patch * patch});
  CHECK(c.cuda(), "the host makes patches in the model's preprocessing");
  if constexpr (kCuda) {
    cuda::patchify(c.stream, frames, levels, patch, merge, temporal, {}, y);
  }
  return y;
}

}  // namespace saccade::ops
