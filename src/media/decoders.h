// Decoders of the single formats. Each checks the limits from the header, before it allocates, and throws Error with
// one line that starts with `origin`.
#pragma once

#include "media/image.h"

namespace saccade::media {

using Bytes = std::span<const std::byte>;

struct Decoded {
  Image image;
  int orientation = 1;  // EXIF, 1..8
};

Decoded decode_jpeg(Bytes bytes, const std::string& origin, const ImageLimits& limits);
Decoded decode_png(Bytes bytes, const std::string& origin, const ImageLimits& limits);
Decoded decode_webp(Bytes bytes, const std::string& origin, const ImageLimits& limits);
Decoded decode_gif(Bytes bytes, const std::string& origin, const ImageLimits& limits);
Decoded decode_bmp(Bytes bytes, const std::string& origin, const ImageLimits& limits);

// Throws when the size breaks the limits.
void check_size(int64_t width, int64_t height, const std::string& origin, const ImageLimits& limits);
// Zero-filled picture, its size checked.
Image make_image(int64_t width, int64_t height, const std::string& origin, const ImageLimits& limits);
[[noreturn]] void fail_truncated(const char* format, const std::string& origin);
[[noreturn]] void fail_damaged(const char* format, const std::string& origin);

inline const uint8_t* raw(Bytes bytes) { return reinterpret_cast<const uint8_t*>(bytes.data()); }
inline uint32_t read_u16(const uint8_t* p, bool big) {
  return big ? static_cast<uint32_t>(p[0] << 8 | p[1]) : static_cast<uint32_t>(p[1] << 8 | p[0]);
}
inline uint32_t read_u32(const uint8_t* p, bool big) {
  return big ? read_u16(p, true) << 16 | read_u16(p + 2, true) : read_u16(p + 2, false) << 16 | read_u16(p, false);
}

}  // namespace saccade::media
