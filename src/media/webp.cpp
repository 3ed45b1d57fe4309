// WebP by libwebp's animation decoder, as Pillow reads every WebP file: the first frame on its canvas, alpha dropped.
#include <webp/demux.h>

#include <memory>
#include <string_view>

#include "base/error.h"
#include "media/decoders.h"
#include "media/exif.h"

namespace saccade::media {
namespace {

// Payload of a chunk, empty when there is none.
Bytes chunk(const WebPDemuxer* demuxer, const char* fourcc) {
  WebPChunkIterator it;
  Bytes payload;
  if (WebPDemuxGetChunk(demuxer, fourcc, 1, &it)) payload = std::as_bytes(std::span(it.chunk.bytes, it.chunk.size));
  WebPDemuxReleaseChunkIterator(&it);
  return payload;
}

}  // namespace

Decoded decode_webp(Bytes bytes, const std::string& origin, const ImageLimits& limits) {
  const WebPData data{raw(bytes), bytes.size()};
  WebPDemuxState state;
  const std::unique_ptr<WebPDemuxer, decltype(&WebPDemuxDelete)> demuxer(WebPDemuxPartial(&data, &state),
                                                                         WebPDemuxDelete);
  if (state == WEBP_DEMUX_PARSING_HEADER || state == WEBP_DEMUX_PARSED_HEADER) fail_truncated("WebP", origin);
  if (!demuxer || state != WEBP_DEMUX_DONE) fail_damaged("WebP", origin);
  Decoded decoded;
  decoded.image = make_image(WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH),
                             WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT), origin, limits);
  const Bytes xmp = chunk(demuxer.get(), "XMP ");
  decoded.orientation =
      find_orientation(chunk(demuxer.get(), "EXIF"), {reinterpret_cast<const char*>(xmp.data()), xmp.size()});

  WebPAnimDecoderOptions options;
  WebPAnimDecoderOptionsInit(&options);
  options.color_mode = MODE_RGBA;
  const std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)> decoder(WebPAnimDecoderNew(&data, &options),
                                                                                   WebPAnimDecoderDelete);
  uint8_t* rgba = nullptr;  // owned by the decoder
  int timestamp = 0;
  if (!decoder || !WebPAnimDecoderGetNext(decoder.get(), &rgba, &timestamp)) fail_damaged("WebP", origin);
  uint8_t* out = decoded.image.rgb.data();
  for (size_t i = 0; i < decoded.image.rgb.size(); i += 3, rgba += 4) {
    out[i] = rgba[0];
    out[i + 1] = rgba[1];
    out[i + 2] = rgba[2];
  }
  return decoded;
}

}  // namespace saccade::media
