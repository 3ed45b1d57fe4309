// PNG by libpng without its transformations: samples become RGB here, by Pillow's rules (alpha and transparent colours
// are dropped, 16-bit grey is clipped to 255, other 16-bit samples keep their high byte).
#include <png.h>

#include <cstring>
#include <string_view>

#include "base/error.h"
#include "media/decoders.h"
#include "media/exif.h"

namespace saccade::media {
namespace {

struct Source {
  Bytes rest;
  bool truncated = false;
};

void on_error(png_structp png, png_const_charp) { png_longjmp(png, 1); }
void on_warning(png_structp, png_const_charp) {}
void on_read(png_structp png, png_bytep out, size_t size) {
  auto& source = *static_cast<Source*>(png_get_io_ptr(png));
  if (size > source.rest.size()) {
    source.truncated = true;
    png_error(png, "");
  }
  std::memcpy(out, source.rest.data(), size);
  source.rest = source.rest.subspan(size);
}

struct Reader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

// Only trivial objects live between setjmp and longjmp.
bool read_header(const Reader& reader, const ImageLimits& limits) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  // Ancillary chunks are not asked for: a colour profile or text cannot cost memory or fail the picture.
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_set_benign_errors(reader.png, 1);
  png_set_user_limits(reader.png, static_cast<png_uint_32>(limits.max_side), static_cast<png_uint_32>(limits.max_side));
  png_read_info(reader.png, reader.info);
  return true;
}

bool start_pixels(const Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_packing(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

bool read_row(const Reader& reader, uint8_t* row) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_row(reader.png, row, nullptr);
  return true;
}

bool read_interlaced(const Reader& reader, png_bytepp rows) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_image(reader.png, rows);
  return true;
}

// Turns rows of samples (one or two bytes each) into RGB.
class RowConverter {
 public:
  explicit RowConverter(const Reader& reader)
      : channels_(png_get_channels(reader.png, reader.info)), wide_(png_get_bit_depth(reader.png, reader.info) == 16) {
    const int color = png_get_color_type(reader.png, reader.info);
    grey_ = !(color & PNG_COLOR_MASK_COLOR);
    if (color == PNG_COLOR_TYPE_PALETTE) {
      png_colorp entries = nullptr;
      int count = 0;
      png_get_PLTE(reader.png, reader.info, &entries, &count);
      for (int i = 0; i < count; ++i) {
        palette_[i * 3] = entries[i].red;
        palette_[i * 3 + 1] = entries[i].green;
        palette_[i * 3 + 2] = entries[i].blue;
      }
      mapped_ = true;
    } else if (grey_ && png_get_bit_depth(reader.png, reader.info) < 8) {
      const int top = (1 << png_get_bit_depth(reader.png, reader.info)) - 1;
      for (int i = 0; i <= top; ++i) std::memset(palette_ + i * 3, i * 255 / top, 3);
      mapped_ = true;
    }
  }

  void convert(const uint8_t* in, uint8_t* out, int width) const {
    if (mapped_) {
      for (int x = 0; x < width; ++x, out += 3) std::memcpy(out, palette_ + in[x] * 3, 3);
      return;
    }
    if (!grey_ && channels_ == 3 && !wide_) {
      std::memcpy(out, in, static_cast<size_t>(width) * 3);
      return;
    }
    const int sample = wide_ ? 2 : 1, pixel = channels_ * sample;
    const bool clip = wide_ && channels_ == 1;
    for (int x = 0; x < width; ++x, in += pixel, out += 3) {
      if (grey_)
        std::memset(out, clip && in[0] ? 255 : clip ? in[1] : in[0], 3);
      else
        for (int c = 0; c < 3; ++c) out[c] = in[c * sample];
    }
  }

 private:
  int channels_;
  bool wide_, grey_ = false, mapped_ = false;
  uint8_t palette_[256 * 3] = {};  // indices past its end are black
};

// EXIF and XMP of the chunks; damaged chunks end the walk.
int find_orientation(Bytes file) {
  Bytes exif;
  std::string_view xmp;
  constexpr std::string_view kXmp("XML:com.adobe.xmp\0\0", 19);  // keyword, not compressed
  for (size_t at = 8; file.size() - at >= 12;) {
    const uint8_t* p = raw(file) + at;
    const size_t length = read_u32(p, true);
    if (length > file.size() - at - 12) break;
    const std::string_view type(reinterpret_cast<const char*>(p + 4), 4);
    if (type == "eXIf") exif = file.subspan(at + 8, length);
    if (type == "iTXt") {
      const std::string_view text(reinterpret_cast<const char*>(p + 8), length);
      if (text.starts_with(kXmp)) xmp = text.substr(kXmp.size());
    }
    at += 12 + length;
  }
  return media::find_orientation(exif, xmp);
}

}  // namespace

Decoded decode_png(Bytes bytes, const std::string& origin, const ImageLimits& limits) {
  Source source{bytes};
  Reader reader;
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, on_error, on_warning);
  if (reader.png) reader.info = png_create_info_struct(reader.png);
  if (!reader.info) fail("{}: out of memory for the PNG decoder", origin);
  png_set_read_fn(reader.png, &source, on_read);
  const auto require = [&](bool ok) {
    if (ok) return;
    source.truncated ? fail_truncated("PNG", origin) : fail_damaged("PNG", origin);
  };
  // libpng refuses sides over the limit without saying so: they are read here as well, for the message.
  if (bytes.size() < 24) fail_truncated("PNG", origin);
  const int64_t width = read_u32(raw(bytes) + 16, true), height = read_u32(raw(bytes) + 20, true);
  check_size(width, height, origin, limits);
  require(read_header(reader, limits));
  // Deflate shrinks at most 1032 times: a header that promises more than the file can hold allocates nothing.
  const int bits = png_get_bit_depth(reader.png, reader.info) * png_get_channels(reader.png, reader.info);
  if (width * height / 8 * bits / 1100 > static_cast<int64_t>(bytes.size())) fail_truncated("PNG", origin);
  const RowConverter converter(reader);  // of the samples as they are stored
  require(start_pixels(reader));
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);

  Decoded decoded;
  decoded.orientation = find_orientation(bytes);
  decoded.image = make_image(width, height, origin, limits);
  uint8_t* out = decoded.image.rgb.data();
  const int w = decoded.image.width, h = decoded.image.height;
  const size_t out_row = static_cast<size_t>(w) * 3;
  if (png_get_interlace_type(reader.png, reader.info) == PNG_INTERLACE_NONE) {
    std::vector<uint8_t> row(row_bytes);
    for (int y = 0; y < h; ++y) {
      require(read_row(reader, row.data()));
      converter.convert(row.data(), out + static_cast<size_t>(y) * out_row, w);
    }
  } else {
    std::vector<uint8_t> samples(row_bytes * static_cast<size_t>(h));
    std::vector<png_bytep> rows(static_cast<size_t>(h));
    for (size_t y = 0; y < rows.size(); ++y) rows[y] = samples.data() + y * row_bytes;
    require(read_interlaced(reader, rows.data()));
    for (size_t y = 0; y < rows.size(); ++y) converter.convert(rows[y], out + y * out_row, w);
  }
  return decoded;
}

}  // namespace saccade::media
