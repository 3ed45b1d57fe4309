#include <png.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/error.h"
#include "media/image.h"

namespace saccade::media {

void write_png(const std::string& path, const Image& image) {
  CHECK(image.width > 0 && image.height > 0 &&
            image.rgb.size() == static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3,
        "{}x{} pixels of {} bytes", image.width, image.height, image.rgb.size());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!file) fail("{}: cannot write: {}", path, std::strerror(errno));
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(image.width);
  png.height = static_cast<png_uint_32>(image.height);
  png.format = PNG_FORMAT_RGB;
  const bool written = png_image_write_to_stdio(&png, file.get(), 0, image.rgb.data(), 0, nullptr) != 0;
  png_image_free(&png);
  if (!written || std::fflush(file.get()) != 0) fail("{}: cannot write: {}", path, std::strerror(errno));
}

}  // namespace saccade::media
