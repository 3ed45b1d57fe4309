// Small pictures for tests, made without a codec.
#pragma once

#include <cstdint>
#include <string>

namespace saccade::apps_test {

// A 24-bit BMP with a gradient.
inline std::string bmp(int width, int height) {
  const auto little = [](uint32_t value, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
    return out;
  };
  const auto w = static_cast<uint32_t>(width), h = static_cast<uint32_t>(height);
  const uint32_t row = (w * 3 + 3) / 4 * 4, header = 54;
  std::string file = "BM" + little(header + row * h, 4) + little(0, 4) + little(header, 4) + little(40, 4) +
                     little(w, 4) + little(h, 4) + little(1, 2) + little(24, 2) + little(0, 4) + little(row * h, 4) +
                     little(2835, 4) + little(2835, 4) + little(0, 4) + little(0, 4);
  for (uint32_t y = 0; y < h; ++y) {
    for (uint32_t x = 0; x < w; ++x) file += little((x * 3 & 0xff) | (y * 5 & 0xff) << 8 | 0x400000, 3);
    file.append(row - w * 3, '\0');
  }
  return file;
}

}  // namespace saccade::apps_test
