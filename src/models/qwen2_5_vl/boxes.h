// Grounding of Qwen2.5-VL: answers hold JSON objects with "bbox_2d": [x1, y1, x2, y2], in pixels of the picture as it
// was resized for the model, and "label" (or, for text that was read, "text_content").
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "models/model.h"

namespace saccade::qwen2_5_vl {

// Boxes on the last of `pictures`, scaled to its original size and clamped; none without a picture. The text may be
// anything around the JSON (a ```json fence), and the JSON may be damaged or cut off: every object that is whole
// counts, the others do not. Time is linear in the text.
std::vector<Box> parse_boxes(std::string_view text, std::span<const Picture> pictures);

}  // namespace saccade::qwen2_5_vl
