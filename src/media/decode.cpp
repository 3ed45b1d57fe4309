#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "base/mapped_file.h"
#include "media/decoders.h"
#include "media/exif.h"

namespace saccade::media {

void check_size(int64_t width, int64_t height, const std::string& origin, const ImageLimits& limits) {
  if (width < 1 || height < 1) fail("{}: picture of {}x{} pixels is empty", origin, width, height);
  if (width > limits.max_side || height > limits.max_side)
    fail("{}: picture of {}x{} pixels, sides up to {} are allowed", origin, width, height, limits.max_side);
  if (width > limits.max_pixels / height)
    fail("{}: picture of {}x{} pixels, up to {} pixels are allowed", origin, width, height, limits.max_pixels);
}

Image make_image(int64_t width, int64_t height, const std::string& origin, const ImageLimits& limits) {
  check_size(width, height, origin, limits);
  Image image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.rgb.resize(static_cast<size_t>(width * height * 3));
  return image;
}

void fail_truncated(const char* format, const std::string& origin) {
  fail("{}: {} picture is cut off before its end", origin, format);
}

void fail_damaged(const char* format, const std::string& origin) {
  fail("{}: {} picture is damaged or of an unsupported kind", origin, format);
}

Image decode_image(Bytes bytes, const std::string& origin, const ImageLimits& limits, bool upright) {
  if (bytes.empty()) fail("{}: picture is empty (0 bytes)", origin);
  if (bytes.size() > static_cast<size_t>(std::max<int64_t>(limits.max_bytes, 0)))
    fail("{}: picture of {} bytes, up to {} are allowed", origin, bytes.size(), limits.max_bytes);
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 16));
  Decoded decoded;
  if (head.starts_with("\xff\xd8\xff"))
    decoded = decode_jpeg(bytes, origin, limits);
  else if (head.starts_with("\x89PNG\r\n\x1a\n"))
    decoded = decode_png(bytes, origin, limits);
  else if (head.starts_with("RIFF") && head.size() >= 12 && head.substr(8, 4) == "WEBP")
    decoded = decode_webp(bytes, origin, limits);
  else if (head.starts_with("GIF87a") || head.starts_with("GIF89a"))
    decoded = decode_gif(bytes, origin, limits);
  else if (head.starts_with("BM"))
    decoded = decode_bmp(bytes, origin, limits);
  else
    fail("{}: not a picture (expected JPEG, PNG, WebP, GIF or BMP)", origin);
  return apply_orientation(std::move(decoded.image), upright ? decoded.orientation : 1);
}

Image load_image(const std::string& path, const ImageLimits& limits, bool upright) {
  const std::string file = read_file(path, static_cast<size_t>(std::max<int64_t>(limits.max_bytes, 0)));
  return decode_image(std::as_bytes(std::span(file)), path, limits, upright);
}

}  // namespace saccade::media
