// First frame of a GIF on its canvas. What the frame leaves open has the transparent colour if there is one, else
// colour 0, as Pillow has it; transparent pixels show their palette colour.
#include <gif_lib.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "media/decoders.h"

namespace saccade::media {
namespace {

struct Source {
  Bytes rest;
  bool truncated = false;
};

int on_read(GifFileType* gif, GifByteType* out, int size) {
  auto& source = *static_cast<Source*>(gif->UserData);
  const size_t n = std::min(source.rest.size(), static_cast<size_t>(size));
  if (n < static_cast<size_t>(size)) source.truncated = true;
  std::memcpy(out, source.rest.data(), n);
  source.rest = source.rest.subspan(n);
  return static_cast<int>(n);
}

struct Close {
  void operator()(GifFileType* gif) const { DGifCloseFile(gif, nullptr); }
};

// RGB of the 256 indices. Without a palette an index is a grey level; past a palette's end is black.
struct Palette {
  uint8_t rgb[256][3] = {};

  explicit Palette(const ColorMapObject* map) {
    for (int i = 0; i < 256; ++i) {
      if (!map)
        std::memset(rgb[i], i, 3);
      else if (i < map->ColorCount)
        std::memcpy(rgb[i], &map->Colors[i], 3);
    }
  }
};

}  // namespace

Decoded decode_gif(Bytes bytes, const std::string& origin, const ImageLimits& limits) {
  Source source{bytes};
  const auto require = [&](bool ok) {
    if (ok) return;
    source.truncated ? fail_truncated("GIF", origin) : fail_damaged("GIF", origin);
  };
  int error = 0;
  const std::unique_ptr<GifFileType, Close> gif(DGifOpen(&source, on_read, &error));
  require(gif != nullptr);

  int transparent = NO_TRANSPARENT_COLOR;
  for (GifRecordType record = UNDEFINED_RECORD_TYPE; record != IMAGE_DESC_RECORD_TYPE;) {
    require(DGifGetRecordType(gif.get(), &record) == GIF_OK);
    if (record == TERMINATE_RECORD_TYPE) fail("{}: GIF picture without a frame", origin);
    if (record != EXTENSION_RECORD_TYPE) continue;
    int code = 0;
    GifByteType* block = nullptr;
    require(DGifGetExtension(gif.get(), &code, &block) == GIF_OK);
    while (block) {
      GraphicsControlBlock control;
      if (code == GRAPHICS_EXT_FUNC_CODE && DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK)
        transparent = control.TransparentColor;
      require(DGifGetExtensionNext(gif.get(), &block) == GIF_OK);
    }
  }
  require(DGifGetImageDesc(gif.get()) == GIF_OK);

  const GifImageDesc& frame = gif->Image;
  const int64_t width = std::max<int64_t>(gif->SWidth, int64_t{frame.Left} + frame.Width);
  const int64_t height = std::max<int64_t>(gif->SHeight, int64_t{frame.Top} + frame.Height);
  if (frame.Width < 1 || frame.Height < 1) fail("{}: GIF picture with an empty frame", origin);
  Decoded decoded;
  decoded.image = make_image(width, height, origin, limits);
  const Palette palette(frame.ColorMap ? frame.ColorMap : gif->SColorMap);
  uint8_t* out = decoded.image.rgb.data();
  if (frame.Width != width || frame.Height != height) {
    const uint8_t* fill = palette.rgb[transparent == NO_TRANSPARENT_COLOR ? 0 : transparent];
    for (size_t i = 0; i < decoded.image.rgb.size(); i += 3) std::memcpy(out + i, fill, 3);
  }
  std::vector<GifPixelType> row(static_cast<size_t>(frame.Width));
  // Interlaced rows come in four passes.
  constexpr int kStart[] = {0, 4, 2, 1}, kStep[] = {8, 8, 4, 2};
  for (int pass = 0; pass < (frame.Interlace ? 4 : 1); ++pass) {
    const int step = frame.Interlace ? kStep[pass] : 1;
    for (int y = frame.Interlace ? kStart[pass] : 0; y < frame.Height; y += step) {
      require(DGifGetLine(gif.get(), row.data(), frame.Width) == GIF_OK);
      uint8_t* to = out + ((int64_t{frame.Top} + y) * width + frame.Left) * 3;
      for (const GifPixelType index : row) {
        std::memcpy(to, palette.rgb[index], 3);
        to += 3;
      }
    }
  }
  return decoded;
}

}  // namespace saccade::media
