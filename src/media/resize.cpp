#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "media/image.h"
#include "media/resample.h"

namespace saccade::media {
namespace {

double bicubic(double x) {
  constexpr double a = -0.5;
  if (x < 0.0) x = -x;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

uint8_t clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

}  // namespace

Resampling bicubic_resampling(int in, int out) {
  Resampling plan;
  plan.in = in;
  plan.out = out;
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale, step = 1.0 / filter_scale;
  const auto n = static_cast<size_t>(out);
  plan.first.resize(n);
  plan.count.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - support + 0.5), 0);
    const int end = std::min(static_cast<int>(center + support + 0.5), in);
    plan.first[i] = begin;
    plan.count[i] = end - begin;
  }
  plan.taps = (*std::max_element(plan.count.begin(), plan.count.end()) + 3) / 4 * 4;
  plan.weights.resize(n * static_cast<size_t>(plan.taps));
  std::vector<double> raw(static_cast<size_t>(plan.taps));
  for (size_t i = 0; i < n; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto count = static_cast<size_t>(plan.count[i]);
    double total = 0;
    for (size_t k = 0; k < count; ++k) {
      raw[k] = bicubic((static_cast<double>(k) + plan.first[i] - center + 0.5) * step);
      total += raw[k];
    }
    for (size_t k = 0; k < count; ++k) {
      const double weight = (total != 0.0 ? raw[k] / total : raw[k]) * (1 << kWeightBits);
      plan.weights[i * static_cast<size_t>(plan.taps) + k] =
          static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  return plan;
}

void horizontal_scalar(const Rows& in, int count, const Resampling& plan, uint8_t* out) {
  for (int y = 0; y < count; ++y) {
    const uint8_t* row = in.data + static_cast<size_t>(y) * in.stride;
    for (int x = 0; x < plan.out; ++x, out += 3) {
      const int32_t* weights = plan.row(x);
      const uint8_t* p = row + 3 * plan.first[static_cast<size_t>(x)];
      int32_t r = 1 << (kWeightBits - 1), g = r, b = r;
      for (int k = 0; k < plan.count[static_cast<size_t>(x)]; ++k, p += 3) {
        r += p[0] * weights[k];
        g += p[1] * weights[k];
        b += p[2] * weights[k];
      }
      out[0] = clip(r);
      out[1] = clip(g);
      out[2] = clip(b);
    }
  }
}

void vertical_scalar(const uint8_t* in, size_t bytes, const int32_t* weights, int taps, uint8_t* out) {
  for (size_t x = 0; x < bytes; ++x) {
    int32_t sum = 1 << (kWeightBits - 1);
    for (int k = 0; k < taps; ++k) sum += in[static_cast<size_t>(k) * bytes + x] * weights[k];
    out[x] = clip(sum);
  }
}

namespace {

Image empty_image(int width, int height) {
  Image image{width, height, {}};
  image.rgb.resize(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
  return image;
}

Image resize_across(const Image& image, int width) {
  static const HorizontalPass pass = have_avx2() ? horizontal_avx2 : horizontal_scalar;
  Image out = empty_image(width, image.height);
  const Rows rows{image.rgb.data(), static_cast<size_t>(image.width) * 3, image.rgb.data() + image.rgb.size()};
  pass(rows, image.height, bicubic_resampling(image.width, width), out.rgb.data());
  return out;
}

Image resize_down(const Image& image, int height) {
  static const VerticalPass pass = have_avx2() ? vertical_avx2 : vertical_scalar;
  Image out = empty_image(image.width, height);
  const Resampling plan = bicubic_resampling(image.height, height);
  const size_t row = static_cast<size_t>(image.width) * 3;
  for (int y = 0; y < height; ++y) {
    const auto i = static_cast<size_t>(y);
    pass(image.rgb.data() + row * static_cast<size_t>(plan.first[i]), row, plan.row(y), plan.count[i],
         out.rgb.data() + row * i);
  }
  return out;
}

}  // namespace

Image resize_bicubic(const Image& image, int width, int height) {
  CHECK(width > 0 && height > 0 && image.width > 0 && image.height > 0, "resize of {}x{} to {}x{}", image.width,
        image.height, width, height);
  if (width == image.width && height == image.height) return image;
  if (height == image.height) return resize_across(image, width);
  if (width == image.width) return resize_down(image, height);
  return down_before_across(image.width, image.height, width, height)
             ? resize_across(resize_down(image, height), width)
             : resize_down(resize_across(image, width), height);
}

}  // namespace saccade::media
