// JPEG by libjpeg-turbo with its defaults (accurate integer DCT, smooth chroma upsampling), which are Pillow's.
// clang-format off
#include <stdio.h>  // jpeglib.h needs FILE and size_t
#include <jpeglib.h>
// clang-format on

#include <csetjmp>
#include <string>
#include <string_view>

#include "base/error.h"
#include "media/decoders.h"
#include "media/exif.h"

namespace saccade::media {
namespace {

// A progressive file may repeat scans over the whole picture; encoders write about ten.
constexpr int kMaxScans = 200;

enum class Stop { kNone, kDamaged, kTruncated, kTooManyScans };

struct Reader {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  jmp_buf jump;
  Stop stop = Stop::kNone;

  [[noreturn]] void leave(Stop why) {
    stop = why;
    longjmp(jump, 1);
  }
  ~Reader() { jpeg_destroy_decompress(&info); }
};

Reader& reader_of(j_common_ptr info) { return *static_cast<Reader*>(info->client_data); }

void on_error(j_common_ptr info) { reader_of(info).leave(Stop::kDamaged); }
void on_message(j_common_ptr) {}
boolean on_end_of_data(j_decompress_ptr info) {
  reader_of(reinterpret_cast<j_common_ptr>(info)).leave(Stop::kTruncated);
}
void on_progress(j_common_ptr info) {
  Reader& reader = reader_of(info);
  if (reader.info.input_scan_number > kMaxScans) reader.leave(Stop::kTooManyScans);
}

// Only trivial objects live between setjmp and longjmp.
void read_header(Reader& reader, Bytes bytes) {
  if (setjmp(reader.jump)) return;
  reader.info.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.output_message = on_message;
  reader.info.client_data = &reader;
  jpeg_create_decompress(&reader.info);
  reader.progress.progress_monitor = on_progress;
  reader.info.progress = &reader.progress;
  jpeg_mem_src(&reader.info, raw(bytes), static_cast<unsigned long>(bytes.size()));
  reader.info.src->fill_input_buffer = on_end_of_data;
  jpeg_save_markers(&reader.info, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&reader.info, TRUE);
}

// Inverted CMYK, as Adobe writes it and Pillow takes every CMYK file to be, to RGB with Pillow's rounding.
void cmyk_to_rgb(const uint8_t* cmyk, uint8_t* rgb, int width) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int white = cmyk[3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * white + 128;
      rgb[c] = static_cast<uint8_t>(white - (((product >> 8) + product) >> 8));
    }
  }
}

// `cmyk` is one row of scratch, null for other kinds.
void read_pixels(Reader& reader, uint8_t* rgb, uint8_t* cmyk) {
  if (setjmp(reader.jump)) return;
  jpeg_decompress_struct& info = reader.info;
  info.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  const size_t row_bytes = size_t{3} * info.output_width;
  while (info.output_scanline < info.output_height) {
    uint8_t* row = rgb + info.output_scanline * row_bytes;
    JSAMPROW target = cmyk ? cmyk : row;
    jpeg_read_scanlines(&info, &target, 1);
    if (cmyk) cmyk_to_rgb(cmyk, row, static_cast<int>(info.output_width));
  }
  jpeg_finish_decompress(&info);
}

void check(const Reader& reader, const std::string& origin) {
  if (reader.stop == Stop::kTruncated) fail_truncated("JPEG", origin);
  if (reader.stop == Stop::kDamaged) fail_damaged("JPEG", origin);
  if (reader.stop == Stop::kTooManyScans) fail("{}: JPEG picture of more than {} scans", origin, kMaxScans);
}

int orientation_of(const Reader& reader) {
  constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  std::string exif;
  std::string_view xmp;
  for (auto* marker = reader.info.marker_list; marker; marker = marker->next) {
    std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.starts_with(kExif)) exif += data.substr(kExif.size());  // a long block continues in the next marker
    if (data.starts_with(kXmp)) xmp = data.substr(kXmp.size());
  }
  return find_orientation(std::as_bytes(std::span(exif)), xmp);
}

}  // namespace

Decoded decode_jpeg(Bytes bytes, const std::string& origin, const ImageLimits& limits) {
  Reader reader;
  read_header(reader, bytes);
  check(reader, origin);
  const int components = reader.info.num_components;
  if (components != 1 && components != 3 && components != 4)
    fail("{}: JPEG picture of {} components, expected 1, 3 or 4", origin, components);
  Decoded decoded;
  decoded.orientation = orientation_of(reader);
  decoded.image = make_image(reader.info.image_width, reader.info.image_height, origin, limits);
  std::vector<uint8_t> cmyk(components == 4 ? size_t{4} * reader.info.image_width : 0);
  read_pixels(reader, decoded.image.rgb.data(), components == 4 ? cmyk.data() : nullptr);
  check(reader, origin);
  return decoded;
}

}  // namespace saccade::media
