#include "draw.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "console.h"

namespace saccade::apps {
namespace {

using Rgb = std::array<uint8_t, 3>;

struct Color {
  const char* name;
  Rgb rgb;
};

constexpr Color kColors[] = {{"red", {230, 25, 50}},     {"lime", {50, 220, 50}},     {"blue", {0, 90, 255}},
                             {"orange", {255, 140, 0}},  {"magenta", {240, 40, 230}}, {"cyan", {60, 220, 240}},
                             {"yellow", {255, 225, 25}}, {"purple", {130, 20, 190}},  {"pink", {255, 170, 200}},
                             {"brown", {140, 80, 30}}};

// Rows of 0 to 9 from the top, five bits each, the highest at the left.
constexpr int kDigitWidth = 5, kDigitHeight = 7;
constexpr uint8_t kDigits[10][kDigitHeight] = {
    {0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e}, {0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e},
    {0x0e, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1f}, {0x1f, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0e},
    {0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02}, {0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e},
    {0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e}, {0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08},
    {0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e}, {0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c}};

const Color& color_of(size_t index) { return kColors[index % std::size(kColors)]; }

// Pixels [x1, x2) x [y1, y2), cut at the border.
void fill(media::Image& image, int x1, int y1, int x2, int y2, const Rgb& rgb) {
  x1 = std::max(x1, 0);
  x2 = std::min(x2, image.width);
  for (int y = std::max(y1, 0); y < std::min(y2, image.height); ++y)
    for (int x = x1; x < x2; ++x)
      std::copy(rgb.begin(), rgb.end(), image.rgb.begin() + (static_cast<std::ptrdiff_t>(y) * image.width + x) * 3);
}

// A tag of the box's colour, above the box where there is room.
void draw_number(media::Image& image, size_t number, int x, int y, int scale, const Rgb& background) {
  const std::string digits = std::to_string(number);
  const int width = (static_cast<int>(digits.size()) * (kDigitWidth + 1) + 1) * scale,
            height = (kDigitHeight + 2) * scale;
  if (y >= height) y -= height;
  x = std::max(0, std::min(x, image.width - width));
  fill(image, x, y, x + width, y + height, background);
  const int light = 299 * background[0] + 587 * background[1] + 114 * background[2];
  const Rgb ink = light > 128000 ? Rgb{0, 0, 0} : Rgb{255, 255, 255};
  for (const char digit : digits) {
    for (int row = 0; row < kDigitHeight; ++row)
      for (int column = 0; column < kDigitWidth; ++column) {
        if (!(kDigits[digit - '0'][row] >> (kDigitWidth - 1 - column) & 1)) continue;
        const int left = x + (column + 1) * scale, top = y + (row + 1) * scale;
        fill(image, left, top, left + scale, top + scale, ink);
      }
    x += (kDigitWidth + 1) * scale;
  }
}

int pixel(float position, int size) {
  return static_cast<int>(std::clamp(std::round(position), 0.0f, static_cast<float>(size)));
}

}  // namespace

const char* box_color_name(size_t index) { return color_of(index).name; }

std::string describe_boxes(std::span<const Box> boxes) {
  std::string text;
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box& b = boxes[i];
    fmt::format_to(std::back_inserter(text), "{}{:>3}  {}  {}  {:.0f} {:.0f} {:.0f} {:.0f}", i > 0 ? "\n" : "", i + 1,
                   b.label.empty() ? "-" : one_line(b.label), box_color_name(i), b.x1, b.y1, b.x2, b.y2);
  }
  return text;
}

void draw_boxes(media::Image& image, std::span<const Box> boxes) {
  const int line = std::clamp(std::max(image.width, image.height) / 400, 2, 4);
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Rgb& rgb = color_of(i).rgb;
    const int x1 = pixel(boxes[i].x1, image.width), y1 = pixel(boxes[i].y1, image.height);
    // A box without an area still shows as a line.
    const int x2 = std::max(pixel(boxes[i].x2, image.width), x1 + 1);
    const int y2 = std::max(pixel(boxes[i].y2, image.height), y1 + 1);
    fill(image, x1, y1, x2, std::min(y1 + line, y2), rgb);
    fill(image, x1, std::max(y2 - line, y1), x2, y2, rgb);
    fill(image, x1, y1, std::min(x1 + line, x2), y2, rgb);
    fill(image, std::max(x2 - line, x1), y1, x2, y2, rgb);
  }
  // After the outlines, so that no outline hides a number.
  for (size_t i = 0; i < boxes.size(); ++i)
    draw_number(image, i + 1, pixel(boxes[i].x1, image.width), pixel(boxes[i].y1, image.height), line, color_of(i).rgb);
}

}  // namespace saccade::apps
