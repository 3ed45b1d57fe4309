#include "models/deepseek_vl2/preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace saccade::deepseek_vl2 {
namespace {

constexpr uint8_t kGrey = 127;  // int(0.5 * 255)

// Python's round: halves to even.
int64_t python_round(double x) { return static_cast<int64_t>(std::nearbyint(x)); }

// Pillow's ImageOps.contain; a side may become 0.
Size contained(Size picture, Size size) {
  const auto w = static_cast<double>(picture.width), h = static_cast<double>(picture.height);
  const double ratio = w / h, wanted = static_cast<double>(size.width) / static_cast<double>(size.height);
  if (ratio > wanted) return {size.width, python_round(h / w * static_cast<double>(size.width))};
  if (ratio < wanted) return {python_round(w / h * static_cast<double>(size.height)), size.height};
  return size;
}

// (x / 255 - 0.5) / 0.5 in float, for each of 256 levels.
template <class T>
std::array<T, 256> grey_levels() {
  std::array<T, 256> levels;
  for (size_t v = 0; v < levels.size(); ++v) levels[v] = T((static_cast<float>(v) / 255.0f - 0.5f) / 0.5f);
  return levels;
}

// The patches of the square tile of image_size pixels whose corner lies at (left, top).
template <class T>
T* write_tile(const media::Image& image, int64_t left, int64_t top, const VisionConfig& config, T* out) {
  static const std::array<T, 256> levels = grey_levels<T>();
  const int64_t side = config.side(), patch = config.patch, plane = patch * patch;
  const size_t row_bytes = static_cast<size_t>(image.width) * 3;
  for (int64_t r = 0; r < side; ++r) {
    for (int64_t c = 0; c < side; ++c, out += 3 * plane) {
      for (int64_t y = 0; y < patch; ++y) {
        const uint8_t* rgb = image.rgb.data() + static_cast<size_t>(top + r * patch + y) * row_bytes +
                             static_cast<size_t>(left + c * patch) * 3;
        T* row = out + y * patch;
        for (int64_t x = 0; x < patch; ++x, rgb += 3) {
          row[x] = levels[rgb[0]];
          row[x + plane] = levels[rgb[1]];
          row[x + 2 * plane] = levels[rgb[2]];
        }
      }
    }
  }
  return out;
}

template <class T>
void write_tiles(const media::Image& whole, const media::Image& large, Size tiles, const VisionConfig& config, T* out) {
  out = write_tile(whole, 0, 0, config, out);
  for (int64_t row = 0; row < tiles.height; ++row)
    for (int64_t column = 0; column < tiles.width; ++column)
      out = write_tile(large, column * config.image_size, row * config.image_size, config, out);
}

}  // namespace

Size best_resolution(Size picture, const std::vector<Size>& candidates) {
  CHECK(!candidates.empty() && picture.width > 0 && picture.height > 0);
  const auto w = static_cast<double>(picture.width), h = static_cast<double>(picture.height);
  Size best;
  int64_t best_kept = 0, best_waste = 0;
  for (const Size& size : candidates) {
    const double scale = std::min(static_cast<double>(size.width) / w, static_cast<double>(size.height) / h);
    const int64_t fitted = static_cast<int64_t>(w * scale) * static_cast<int64_t>(h * scale);
    const int64_t kept = std::min(fitted, picture.width * picture.height), waste = size.width * size.height - kept;
    if (best.width == 0 || kept > best_kept || (kept == best_kept && waste < best_waste)) {
      best = size;
      best_kept = kept;
      best_waste = waste;
    }
  }
  return best;
}

media::Image pad(const media::Image& picture, Size size) {
  const Size fitted = contained({picture.width, picture.height}, size);
  if (fitted == size)
    return media::resize_bicubic(picture, static_cast<int>(size.width), static_cast<int>(size.height));
  media::Image out{static_cast<int>(size.width), static_cast<int>(size.height), {}};
  out.rgb.assign(static_cast<size_t>(size.width * size.height) * 3, kGrey);
  if (fitted.width == 0 || fitted.height == 0) return out;  // too thin to be seen, as in Pillow
  const media::Image resized =
      media::resize_bicubic(picture, static_cast<int>(fitted.width), static_cast<int>(fitted.height));
  const auto left = static_cast<size_t>(python_round(static_cast<double>(size.width - fitted.width) * 0.5));
  const auto top = static_cast<size_t>(python_round(static_cast<double>(size.height - fitted.height) * 0.5));
  const auto row = static_cast<size_t>(fitted.width) * 3;
  for (size_t y = 0; y < static_cast<size_t>(fitted.height); ++y)
    std::memcpy(out.rgb.data() + ((top + y) * static_cast<size_t>(size.width) + left) * 3, resized.rgb.data() + y * row,
                row);
  return out;
}

int64_t picture_tokens(Size tiles, const Config& config) {
  const int64_t side = config.tile_side();
  return side * (side + 1) + 1 + side * tiles.height * (side * tiles.width + 1);
}

Tiles preprocess(const media::Image& picture, const Config& config, bool tiling, DType dtype,
                 const std::string& origin) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "tiles as {}", dtype_name(dtype));
  if (picture.width < 1 || picture.height < 1)
    fail("{}: picture of {}x{} pixels is empty", origin, picture.width, picture.height);
  const VisionConfig& v = config.vision;
  Tiles result;
  result.picture = {picture.width, picture.height};
  const Size one{v.image_size, v.image_size};
  const Size size = tiling ? best_resolution(result.picture, config.resolutions) : one;
  result.tiles = {size.width / v.image_size, size.height / v.image_size};
  const media::Image whole = pad(picture, one);
  const media::Image large = size == one ? media::Image() : pad(picture, size);

  const int64_t rows = (1 + result.tiles.width * result.tiles.height) * v.patches();
  result.buffer = Buffer(static_cast<size_t>(rows * v.patch_values()) * dtype_size(dtype));
  result.pixels = Tensor(result.buffer.data(), dtype, {rows, v.patch_values()});
  const media::Image& cut = size == one ? whole : large;
  if (dtype == DType::kF32)
    write_tiles(whole, cut, result.tiles, v, result.pixels.as<float>());
  else
    write_tiles(whole, cut, result.tiles, v, result.pixels.as<BFloat16>());
  return result;
}

}  // namespace saccade::deepseek_vl2
