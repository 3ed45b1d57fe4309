// Boxes on a picture: a list for people, and a drawing whose colours and numbers match it.
#pragma once

#include <span>
#include <string>

#include "media/image.h"
#include "saccade/request.h"

namespace saccade::apps {

// Name of the colour of box `index` (from 0). There are ten, then they repeat.
const char* box_color_name(size_t index);

// A line for each box, without the last line break: number from 1, label, colour, x1 y1 x2 y2 in pixels.
std::string describe_boxes(std::span<const Box> boxes);

// Outlines of 2 to 4 pixels by the size of the picture, inside the box, with the number at the upper left corner. What
// lies outside of the picture is not drawn.
void draw_boxes(media::Image& image, std::span<const Box> boxes);

}  // namespace saccade::apps
