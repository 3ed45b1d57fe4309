// Windows and OS/2 bitmaps: 1, 4 and 8 bits with a palette, 16, 24 and 32 bits, bottom-up or top-down. Run-length
// encoded ones are refused.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "media/decoders.h"

namespace saccade::media {
namespace {

constexpr size_t kFileHeader = 14;
enum Compression : uint32_t { kRgb = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3 };

struct Header {
  size_t size = 0, pixels = 0;  // of the header; offset of the pixels in the file
  int64_t width = 0, height = 0;
  bool top_down = false;
  uint32_t bits = 0, compression = kRgb, colors = 0;
  size_t palette_at = 0, palette_entry = 4;
  std::array<uint32_t, 3> masks{};
};

Header read_header(Bytes file, const std::string& origin) {
  if (file.size() < kFileHeader + 12) fail_truncated("BMP", origin);
  const uint8_t* p = raw(file);
  Header h;
  h.pixels = read_u32(p + 10, false);
  h.size = read_u32(p + 14, false);
  p += kFileHeader;
  constexpr std::array<size_t, 7> kSizes = {12, 40, 52, 56, 64, 108, 124};
  if (std::find(kSizes.begin(), kSizes.end(), h.size) == kSizes.end())
    fail("{}: BMP picture with a header of {} bytes, which is not known", origin, h.size);
  if (file.size() < kFileHeader + h.size) fail_truncated("BMP", origin);
  if (h.size == 12) {
    h.width = read_u16(p + 4, false);
    h.height = read_u16(p + 6, false);
    h.bits = read_u16(p + 10, false);
    h.palette_entry = 3;
  } else {
    h.width = static_cast<int32_t>(read_u32(p + 4, false));
    h.height = static_cast<int32_t>(read_u32(p + 8, false));
    h.top_down = h.height < 0;
    if (h.top_down) h.height = -h.height;
    h.bits = read_u16(p + 14, false);
    h.compression = read_u32(p + 16, false);
    h.colors = read_u32(p + 32, false);
  }
  h.palette_at = kFileHeader + h.size;
  if (h.compression == kBitFields) {
    if (h.size == 40) {  // the masks follow the header
      if (file.size() < h.palette_at + 12) fail_truncated("BMP", origin);
      h.palette_at += 12;
    }
    for (size_t i = 0; i < 3; ++i) h.masks[i] = read_u32(p + 40 + 4 * i, false);
  } else if (h.bits == 16) {
    h.masks = {0x7c00, 0x03e0, 0x001f};
  } else {
    h.masks = {0xff0000, 0xff00, 0xff};
  }
  return h;
}

void check(const Header& h, const std::string& origin) {
  if (h.compression == kRle8 || h.compression == kRle4)
    fail("{}: run-length encoded BMP pictures are not supported", origin);
  if (h.compression != kRgb && h.compression != kBitFields)
    fail("{}: BMP picture of compression {}, which is not supported", origin, h.compression);
  constexpr std::array<uint32_t, 6> kBits = {1, 4, 8, 16, 24, 32};
  if (std::find(kBits.begin(), kBits.end(), h.bits) == kBits.end() || (h.compression == kBitFields && h.bits < 16))
    fail("{}: BMP picture of {} bits per pixel, which is not supported", origin, h.bits);
}

// Where a colour lies in a pixel, and the factor that spreads it over 0..255.
struct Field {
  uint32_t shift, top;

  explicit Field(uint32_t mask) : shift(mask ? static_cast<uint32_t>(__builtin_ctz(mask)) : 0), top(mask >> shift) {}
  uint8_t value(uint32_t pixel) const { return static_cast<uint8_t>(((pixel >> shift) & top) * 255 / top); }
  bool valid() const { return top != 0 && (top & (top + 1)) == 0 && top <= 255; }
};

using Palette = std::array<std::array<uint8_t, 3>, 256>;

Palette read_palette(Bytes file, const Header& h, const std::string& origin) {
  Palette palette{};  // past the end is black
  const size_t count = std::min<size_t>(h.colors ? h.colors : size_t{1} << h.bits, 256);
  if (file.size() < h.palette_at + count * h.palette_entry) fail_truncated("BMP", origin);
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* bgr = raw(file) + h.palette_at + i * h.palette_entry;
    palette[i] = {bgr[2], bgr[1], bgr[0]};
  }
  return palette;
}

}  // namespace

Decoded decode_bmp(Bytes bytes, const std::string& origin, const ImageLimits& limits) {
  const Header h = read_header(bytes, origin);
  check(h, origin);
  check_size(h.width, h.height, origin, limits);
  const auto width = static_cast<size_t>(h.width), height = static_cast<size_t>(h.height);
  const size_t row_bytes = (width * h.bits + 31) / 32 * 4;
  if (h.pixels > bytes.size() || bytes.size() - h.pixels < row_bytes * height) fail_truncated("BMP", origin);
  const Field fields[3] = {Field(h.masks[0]), Field(h.masks[1]), Field(h.masks[2])};
  if (h.bits >= 16 && !std::all_of(fields, fields + 3, [](const Field& f) { return f.valid(); }))
    fail("{}: BMP picture with colour masks {:x}, {:x}, {:x}, which are not supported", origin, h.masks[0], h.masks[1],
         h.masks[2]);
  const Palette palette = h.bits <= 8 ? read_palette(bytes, h, origin) : Palette{};

  Decoded decoded;
  decoded.image = make_image(h.width, h.height, origin, limits);
  for (size_t y = 0; y < height; ++y) {
    const uint8_t* in = raw(bytes) + h.pixels + (h.top_down ? y : height - 1 - y) * row_bytes;
    uint8_t* out = decoded.image.rgb.data() + y * width * 3;
    for (size_t x = 0; x < width; ++x, out += 3) {
      if (h.bits <= 8) {
        const size_t bit = x * h.bits;
        const uint32_t index = (in[bit / 8] >> (8 - h.bits - bit % 8)) & ((1u << h.bits) - 1);
        std::memcpy(out, palette[index].data(), 3);
        continue;
      }
      const uint8_t* p = in + x * h.bits / 8;
      const uint32_t pixel = h.bits == 16   ? read_u16(p, false)
                             : h.bits == 24 ? read_u16(p, false) | static_cast<uint32_t>(p[2]) << 16
                                            : read_u32(p, false);
      for (size_t c = 0; c < 3; ++c) out[c] = fields[c].value(pixel);
    }
  }
  return decoded;
}

}  // namespace saccade::media
