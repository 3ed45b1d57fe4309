// Pictures: encoded bytes to RGB pixels, and Pillow's resampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace saccade::media {

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]
};

// Checked from the header before anything is allocated.
struct ImageLimits {
  int64_t max_bytes = int64_t{64} << 20;    // encoded
  int64_t max_pixels = int64_t{178956970};  // decoded; Pillow's own limit against bombs
  int max_side = 65535;
};

// JPEG (progressive, grey, CMYK), PNG (alpha, palette, 16 bit), WebP, GIF (first frame), BMP, told apart by content.
// Alpha and EXIF orientation as docs/preprocessing.md says. `origin` names the file or field in errors (one line, no
// library text). `upright`: turned as EXIF says; otherwise as stored.
Image decode_image(std::span<const std::byte> bytes, const std::string& origin, const ImageLimits& limits = {},
                   bool upright = true);
Image load_image(const std::string& path, const ImageLimits& limits = {}, bool upright = true);

// 8-bit RGB; throws Error naming the file.
void write_png(const std::string& path, const Image& image);

// Bit-equal to Pillow's Image.resize((width, height), BICUBIC) for RGB.
Image resize_bicubic(const Image& image, int width, int height);

}  // namespace saccade::media
