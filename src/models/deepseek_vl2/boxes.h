// Grounding of DeepSeek-VL2: <|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>, whole numbers of which 999 is
// the width or height of the picture.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "models/model.h"

namespace saccade::deepseek_vl2 {

// Boxes on the last of `pictures`, clamped; none without a picture. A group that is not written so is left out; of one
// that is cut off by the end of the text, the boxes that are whole count.
std::vector<Box> parse_boxes(std::string_view text, std::span<const Picture> pictures);

}  // namespace saccade::deepseek_vl2
