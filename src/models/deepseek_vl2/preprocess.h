// Pictures of DeepSeek-VL2: one view of the whole picture and, of the best fitting candidate resolution, its tiles.
// Reproduces the original processor with Pillow 13 to the bit; see deepseek_vl2.md, section 1.
#pragma once

#include "media/image.h"
#include "models/deepseek_vl2/config.h"
#include "tensor/arena.h"

namespace saccade::deepseek_vl2 {

// The candidate that keeps most of a picture's pixels, then the one that wastes least, then the first.
Size best_resolution(Size picture, const std::vector<Size>& candidates);

// Fits the picture into `size` (enlarging small ones), centred on grey 127: Pillow's ImageOps.pad, bicubic.
media::Image pad(const media::Image& picture, Size size);

// Tokens of one picture: rows of the whole view and of the tiles laid together, each ended by a newline, and the
// separator between the two.
int64_t picture_tokens(Size tiles, const Config& config);

struct Tiles {
  Buffer buffer;
  Tensor
      pixels;    // [(1 + columns * rows) * patches, 3 * patch * patch], F32 or BF16: tiles one after another, the whole
                 // view first, then row by row; patches row by row; values (channel, y, x), (x / 255 - 0.5) / 0.5
  Size tiles;    // columns and rows of tiles
  Size picture;  // pixels of the original
};

// `tiling` off: one tile, of the same pixels as the whole view. Throws Error naming `origin` for an empty picture.
Tiles preprocess(const media::Image& picture, const Config& config, bool tiling, DType dtype,
                 const std::string& origin);

}  // namespace saccade::deepseek_vl2
