// From the coordinates that a model writes to boxes on a picture.
#pragma once

#include <span>
#include <string>

#include "models/model.h"

namespace saccade {

// Corners in shares of the width and height of the last of `pictures` (at least one); put in order and clamped.
Box box_of_shares(std::string label, std::span<const Picture> pictures, double x1, double y1, double x2, double y2);

}  // namespace saccade
