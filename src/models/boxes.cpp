#include "models/boxes.h"

#include <algorithm>

#include "base/check.h"

namespace saccade {

Box box_of_shares(std::string label, std::span<const Picture> pictures, double x1, double y1, double x2, double y2) {
  CHECK(!pictures.empty(), "a box without a picture");
  const auto width = static_cast<double>(pictures.back().width), height = static_cast<double>(pictures.back().height);
  const auto x = [&](double share) { return static_cast<float>(std::clamp(share, 0.0, 1.0) * width); };
  const auto y = [&](double share) { return static_cast<float>(std::clamp(share, 0.0, 1.0) * height); };
  return {std::move(label),    static_cast<int>(pictures.size()) - 1,
          x(std::min(x1, x2)), y(std::min(y1, y2)),
          x(std::max(x1, x2)), y(std::max(y1, y2))};
}

}  // namespace saccade
