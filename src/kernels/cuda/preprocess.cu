// Pillow's bicubic resize in its two passes, and patches of the result: integer sums and table look-ups, so results
// are those of the CPU to the last bit.
//
// One picture of 1000x747 resized to 1008x756 moves 2.2 + 2 * 2.3 + 2.3 MB for the resize and 2.3 + 9.1 MB for the
// patches, all of it in the L2 cache but for the first read: about 4 us of traffic. Each thread keeps what several of
// its outputs share (the weights of a column, the places of four values in a patch), and rows need no division.
#include <cuda_bf16.h>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/preprocess.h"
#include "tensor/expect.h"

namespace saccade::cuda {
namespace {

constexpr int kWeightBits = 22;
constexpr int kHalf = 1 << (kWeightBits - 1);

__device__ __forceinline__ uint8_t clip(int sum) { return static_cast<uint8_t>(min(max(sum >> kWeightBits, 0), 255)); }

// Rows of w pixels to rows of ow. Grid (rows / kAcrossRows, ow / kAcrossThreads): a thread makes one pixel of each of
// its rows.
constexpr int kAcrossRows = 4, kAcrossThreads = 128;

__global__ void __launch_bounds__(kAcrossThreads)
    across_kernel(const uint8_t* __restrict__ in, const int* __restrict__ begins, const int* __restrict__ weights,
                  int taps, int64_t rows, int w, int ow, uint8_t* __restrict__ out) {
  const int x = static_cast<int>(blockIdx.y) * kAcrossThreads + static_cast<int>(threadIdx.x);
  const int64_t y = int64_t{blockIdx.x} * kAcrossRows;
  if (x >= ow) return;
  const int begin = begins[x];
  const int used = min(taps, w - begin);  // weights of zero may reach past the row
  const uint8_t* row[kAcrossRows];
  int sum[kAcrossRows][3];
#pragma unroll
  for (int r = 0; r < kAcrossRows; ++r) {
    row[r] = in + (min(y + r, rows - 1) * w + begin) * 3;
    sum[r][0] = sum[r][1] = sum[r][2] = kHalf;
  }
  for (int k = 0; k < used; ++k) {
    const int weight = weights[x * taps + k];
#pragma unroll
    for (int r = 0; r < kAcrossRows; ++r)
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[r][c] += row[r][3 * k + c] * weight;
  }
#pragma unroll
  for (int r = 0; r < kAcrossRows; ++r)
    if (y + r < rows)
#pragma unroll
      for (int c = 0; c < 3; ++c) out[((y + r) * ow + x) * 3 + c] = clip(sum[r][c]);
}

// Frames of h rows to frames of oh rows, all of `words` words of kBytes bytes. Grid (F * oh, words / kDownThreads).
constexpr int kDownThreads = 256;
template <int kBytes>
struct alignas(kBytes) Bytes {
  uint8_t value[kBytes];
};

template <int kBytes>
__global__ void __launch_bounds__(kDownThreads)
    down_kernel(const Bytes<kBytes>* __restrict__ in, const int* __restrict__ begins, const int* __restrict__ weights,
                int taps, int h, int oh, int64_t words, Bytes<kBytes>* __restrict__ out) {
  const int64_t x = int64_t{blockIdx.y} * kDownThreads + threadIdx.x;
  if (x >= words) return;
  const int frame = static_cast<int>(blockIdx.x) / oh, y = static_cast<int>(blockIdx.x) % oh;
  const int begin = begins[y], used = min(taps, h - begin);
  const Bytes<kBytes>* p = in + (int64_t{frame} * h + begin) * words + x;
  int sum[kBytes];
#pragma unroll
  for (int i = 0; i < kBytes; ++i) sum[i] = kHalf;
#pragma unroll 4
  for (int k = 0; k < used; ++k, p += words) {
    const Bytes<kBytes> bytes = *p;
    const int weight = weights[y * taps + k];
#pragma unroll
    for (int i = 0; i < kBytes; ++i) sum[i] += bytes.value[i] * weight;
  }
  Bytes<kBytes> result;
#pragma unroll
  for (int i = 0; i < kBytes; ++i) result.value[i] = clip(sum[i]);
  out[int64_t{blockIdx.x} * words + x] = result;
}

// rgb [F, h, w, 3] -> out [F, h, ow, 3].
void across(Stream stream, const Tensor& rgb, const ResizeAxis& axis, const Tensor& out) {
  Dim frames{"F"}, h{"h"}, w{"w"}, ow{"ow"}, taps{"taps"};
  expect(rgb, "rgb").dtype(DType::kU8).contiguous().shape(frames, h, w, 3);
  expect(out, "resized").dtype(DType::kU8).contiguous().shape(frames, h, ow, 3);
  expect(axis.begins, "begins").dtype(DType::kI32).contiguous().shape(ow);
  expect(axis.weights, "weights").dtype(DType::kI32).contiguous().shape(ow, taps);
  const int64_t rows = frames * h;
  const dim3 grid(static_cast<unsigned>((rows + kAcrossRows - 1) / kAcrossRows),
                  static_cast<unsigned>((ow + kAcrossThreads - 1) / kAcrossThreads));
  across_kernel<<<grid, kAcrossThreads, 0, stream>>>(rgb.as<uint8_t>(), axis.begins.as<int32_t>(),
                                                     axis.weights.as<int32_t>(), static_cast<int>(taps), rows,
                                                     static_cast<int>(w), static_cast<int>(ow), out.as<uint8_t>());
  check_launch("resize across");
}

// rgb [F, h, w, 3] -> out [F, oh, w, 3].
void down(Stream stream, const Tensor& rgb, const ResizeAxis& axis, const Tensor& out) {
  Dim frames{"F"}, h{"h"}, w{"w"}, oh{"oh"}, taps{"taps"};
  expect(rgb, "rgb").dtype(DType::kU8).contiguous().shape(frames, h, w, 3);
  expect(out, "resized").dtype(DType::kU8).contiguous().shape(frames, oh, w, 3);
  expect(axis.begins, "begins").dtype(DType::kI32).contiguous().shape(oh);
  expect(axis.weights, "weights").dtype(DType::kI32).contiguous().shape(oh, taps);
  const auto launch = [&]<int kBytes>() {
    using Word = Bytes<kBytes>;
    const int64_t words = w * 3 / kBytes;
    const dim3 grid(static_cast<unsigned>(frames * oh),
                    static_cast<unsigned>((words + kDownThreads - 1) / kDownThreads));
    down_kernel<kBytes><<<grid, kDownThreads, 0, stream>>>(
        static_cast<const Word*>(rgb.data), axis.begins.as<int32_t>(), axis.weights.as<int32_t>(),
        static_cast<int>(taps), static_cast<int>(h), static_cast<int>(oh), words, static_cast<Word*>(out.data));
  };
  if (w % 4 == 0)
    launch.operator()<4>();
  else
    launch.operator()<1>();
  check_launch("resize down");
}

struct PatchGrid {
  int patch, merge, temporal;
  int frames, units_h, units_w;  // merge units of a frame
};

// One CTA makes one merge unit of y, whose values are contiguous: patches [merge*merge, 3, temporal] of patch * patch
// values. A thread makes the same kValues values of every plane of its patches, so it finds their places once.
constexpr int kPatchThreads = 64, kPatchesAtOnce = 4;

template <int kValues>
__global__ void __launch_bounds__(kPatchThreads* kPatchesAtOnce)
    patchify_kernel(const uint8_t* __restrict__ frames, const uint16_t* __restrict__ levels,
                    const int* __restrict__ unit_order, PatchGrid g, uint16_t* __restrict__ out) {
  __shared__ uint16_t table[3 * 256];
  for (int i = static_cast<int>(threadIdx.y * kPatchThreads + threadIdx.x); i < 3 * 256;
       i += kPatchThreads * kPatchesAtOnce)
    table[i] = levels[i];
  __syncthreads();

  struct alignas(2 * kValues) Values {
    uint16_t value[kValues];
  };
  const int unit = unit_order ? unit_order[blockIdx.x] : static_cast<int>(blockIdx.x);
  const int t = unit / (g.units_h * g.units_w), in_frame = unit % (g.units_h * g.units_w);
  const int side = g.merge * g.patch, width = g.units_w * side;
  const int64_t frame_bytes = int64_t{3} * g.units_h * side * width;
  const uint8_t* corner = frames + (int64_t{in_frame / g.units_w} * side * width + in_frame % g.units_w * side) * 3;
  const int plane = g.patch * g.patch, patches = g.merge * g.merge;
  for (int at = static_cast<int>(threadIdx.x) * kValues; at < plane; at += kPatchThreads * kValues) {
    int place[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) place[i] = ((at + i) / g.patch * width + (at + i) % g.patch) * 3;
    for (int p = static_cast<int>(threadIdx.y); p < patches; p += kPatchesAtOnce) {
      const uint8_t* patch = corner + (p / g.merge * width + p % g.merge) * g.patch * 3;
      uint16_t* y = out + (int64_t{blockIdx.x} * patches + p) * 3 * g.temporal * plane + at;
      for (int slot = 0; slot < g.temporal; ++slot, y += plane) {
        const uint8_t* from = patch + min(t * g.temporal + slot, g.frames - 1) * frame_bytes;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          Values values;
#pragma unroll
          for (int i = 0; i < kValues; ++i) values.value[i] = table[c * 256 + from[place[i] + c]];
          *reinterpret_cast<Values*>(y + c * g.temporal * plane) = values;
        }
      }
    }
  }
}

}  // namespace

void resize_bicubic(Stream stream, const Tensor& rgb, const ResizeAxis& x, const ResizeAxis& y, const Tensor& scratch,
                    const Tensor& out) {
  CHECK(x || y, "a resize without passes");
  if (!y) {
    across(stream, rgb, x, out);
  } else if (!x) {
    down(stream, rgb, y, out);
  } else if (scratch.rank == 4 && scratch.dim(1) == rgb.dim(1)) {
    across(stream, rgb, x, scratch);
    down(stream, scratch, y, out);
  } else {
    down(stream, rgb, y, scratch);
    across(stream, scratch, x, out);
  }
}

void patchify(Stream stream, const Tensor& frames, const Tensor& levels, int patch, int merge, int temporal,
              const Tensor& unit_order, const Tensor& y) {
  CHECK(patch > 0 && merge > 0 && temporal > 0, "patches of {}, merged by {}, {} frames", patch, merge, temporal);
  Dim count{"F"}, height{"height"}, width{"width"};
  expect(frames, "frames").dtype(DType::kU8).contiguous().shape(count, height, width, 3);
  expect(levels, "levels").dtype(DType::kBF16).contiguous().shape(3, 256);
  const int64_t side = int64_t{patch} * merge, plane = int64_t{patch} * patch;
  CHECK(height % side == 0 && width % side == 0, "frames of {}x{}, merge units of {}", int64_t{width}, int64_t{height},
        side);
  const int64_t steps = (count + temporal - 1) / temporal, units = steps * (height / side) * (width / side);
  expect(y, "patches").dtype(DType::kBF16).contiguous().shape(units * merge * merge, 3 * temporal * plane);
  if (unit_order) expect(unit_order, "unit order").dtype(DType::kI32).contiguous().shape(units);
  const PatchGrid grid{
      patch, merge, temporal, static_cast<int>(count), static_cast<int>(height / side), static_cast<int>(width / side)};
  const auto kernel = plane % 4 == 0 ? patchify_kernel<4> : patchify_kernel<1>;
  kernel<<<static_cast<unsigned>(units), dim3(kPatchThreads, kPatchesAtOnce), 0, stream>>>(
      frames.as<uint8_t>(), static_cast<const uint16_t*>(levels.data), unit_order ? unit_order.as<int32_t>() : nullptr,
      grid, static_cast<uint16_t*>(y.data));
  check_launch("patchify");
}

}  // namespace saccade::cuda
