#include "media/exif.h"

#include <algorithm>

#include "media/decoders.h"

namespace saccade::media {
namespace {

constexpr uint32_t kOrientationTag = 0x0112;

// 0 when the block holds no orientation.
int exif_orientation(Bytes exif) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  const auto starts = [&] {
    return exif.size() >= kPrefix.size() && std::equal(kPrefix.begin(), kPrefix.end(), raw(exif));
  };
  for (int i = 0; i < 2 && starts(); ++i) exif = exif.subspan(kPrefix.size());
  if (exif.size() < 8) return 0;
  const uint8_t* p = raw(exif);
  const bool big = p[0] == 'M';
  if ((p[0] != 'M' && p[0] != 'I') || p[1] != p[0] || read_u16(p + 2, big) != 42) return 0;
  const size_t directory = read_u32(p + 4, big);
  if (directory > exif.size() - 2) return 0;
  const size_t entries = read_u16(p + directory, big);
  for (size_t i = 0; i < entries; ++i) {
    const size_t at = directory + 2 + i * 12;
    if (at + 12 > exif.size()) return 0;
    if (read_u16(p + at, big) != kOrientationTag) continue;
    const uint32_t type = read_u16(p + at + 2, big), count = read_u32(p + at + 4, big);
    constexpr uint32_t kShort = 3, kLong = 4;
    if (count != 1 || (type != kShort && type != kLong)) return 0;
    const uint32_t value = type == kShort ? read_u16(p + at + 8, big) : read_u32(p + at + 8, big);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 0;
}

int xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kKey = "tiff:Orientation";
  for (size_t at = xmp.find(kKey); at != xmp.npos; at = xmp.find(kKey, at + 1)) {
    std::string_view rest = xmp.substr(at + kKey.size());
    if (rest.starts_with("=\""))
      rest.remove_prefix(2);
    else if (rest.starts_with(">"))
      rest.remove_prefix(1);
    else
      continue;
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return 0;
}

}  // namespace

int find_orientation(Bytes exif, std::string_view xmp) {
  int orientation = exif_orientation(exif);
  if (orientation == 0) orientation = xmp_orientation(xmp);
  return orientation >= 1 && orientation <= 8 ? orientation : 1;
}

Image apply_orientation(Image image, int orientation) {
  if (orientation <= 1) return image;
  const bool swap = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out;
  out.width = swap ? image.height : image.width;
  out.height = swap ? image.width : image.height;
  out.rgb.resize(image.rgb.size());
  // Source steps per step right and down in the result. Tiles keep the transposed reads in cache.
  const int64_t row = int64_t{3} * image.width;
  const int64_t dx = flip_x ? -3 : 3, dy = flip_y ? -row : row;
  const int64_t origin = (flip_x ? row - 3 : 0) + (flip_y ? row * (image.height - 1) : 0);
  const int64_t right = swap ? dy : dx, down = swap ? dx : dy;
  constexpr int kTile = 32;
  for (int y0 = 0; y0 < out.height; y0 += kTile) {
    for (int x0 = 0; x0 < out.width; x0 += kTile) {
      const int y1 = std::min(y0 + kTile, out.height), x1 = std::min(x0 + kTile, out.width);
      for (int y = y0; y < y1; ++y) {
        const uint8_t* from = image.rgb.data() + origin + y * down + x0 * right;
        uint8_t* to = out.rgb.data() + (int64_t{y} * out.width + x0) * 3;
        for (int x = x0; x < x1; ++x, from += right, to += 3) std::copy_n(from, 3, to);
      }
    }
  }
  return out;
}

}  // namespace saccade::media
