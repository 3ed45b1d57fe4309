// Any bytes are a picture within the limits or an Error of one line. Seeds: tests/fuzz/corpus/fuzz_image and
// tests/data/media.
#include <cstdlib>

#include "base/error.h"
#include "media/image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  saccade::media::ImageLimits limits;
  limits.max_bytes = 1 << 20;
  limits.max_pixels = 1 << 18;
  limits.max_side = 4096;
  try {
    const saccade::media::Image image =
        saccade::media::decode_image({reinterpret_cast<const std::byte*>(data), size}, "input", limits);
    const auto pixels = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
    if (image.width < 1 || image.height < 1 || pixels > size_t{1} << 18 || image.rgb.size() != pixels * 3) std::abort();
  } catch (const saccade::Error& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
