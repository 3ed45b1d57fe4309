#include "media/libraries.h"

// clang-format off
#include <cstdio>  // jpeglib.h needs it
#include <jpeglib.h>
// clang-format on
#include <fmt/format.h>
#include <png.h>
#include <webp/decode.h>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avutil.h>
#include <libswscale/swscale.h>
}

namespace saccade::media {
namespace {

// libjpeg-turbo tells its version at compile time only, as major * 1000000 + minor * 1000 + revision.
std::string jpeg_version() {
#ifdef LIBJPEG_TURBO_VERSION_NUMBER
  constexpr int v = LIBJPEG_TURBO_VERSION_NUMBER;
  return fmt::format("turbo {}.{}.{}", v / 1000000, v / 1000 % 1000, v % 1000);
#else
  return fmt::format("libjpeg {}", JPEG_LIB_VERSION);
#endif
}

std::string av_library(unsigned v) { return fmt::format("{}.{}.{}", v >> 16, v >> 8 & 0xff, v & 0xff); }

}  // namespace

std::vector<Library> libraries() {
  const unsigned webp = static_cast<unsigned>(WebPGetDecoderVersion());
  return {{"libjpeg", jpeg_version()},
          {"libpng", png_get_libpng_ver(nullptr)},
          {"libwebp", av_library(webp)},
          {"ffmpeg", av_version_info()},
          {"libavformat", av_library(avformat_version())},
          {"libavcodec", av_library(avcodec_version())},
          {"libswscale", av_library(swscale_version())}};
}

}  // namespace saccade::media
