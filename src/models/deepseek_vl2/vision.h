// Vision tower of DeepSeek-VL2: SigLIP, projector and the order of a picture's tokens (deepseek_vl2.md, section 3).
#pragma once

#include <span>
#include <vector>

#include "models/deepseek_vl2/config.h"
#include "ops/ops.h"
#include "weights/weights.h"

namespace saccade::deepseek_vl2 {

// Row of [features | newline | separator] for each token of pictures that lie one after another: a picture has its
// whole view and then size.width * size.height tiles, of side * side features each.
std::vector<int32_t> token_order(std::span<const Size> pictures, int64_t side);

class VisionTower {
 public:
  VisionTower(const Config& config, Weights& weights);

  // pixels [tiles * patches, 3 * patch * patch] of all pictures, in the activation dtype; `pictures` says how many
  // columns and rows of tiles each has -> embeddings [sum of picture_tokens, D], picture after picture.
  Tensor forward(const Ctx& c, const Tensor& pixels, std::span<const Size> pictures) const;

  // Arena bytes that forward() of so many tiles needs at most, for the memory plan.
  static size_t workspace_bytes(const Config& config, int64_t tiles, DType dtype);

 private:
  struct Norm {
    Tensor weight, bias;
  };
  struct Block {
    Norm norm1, norm2;
    Weight qkv, proj, fc1, fc2;
  };

  Tensor tower(const Ctx& c, const Tensor& pixels) const;  // -> [tiles * patches, width]
  Tensor project(const Ctx& c, const Tensor& x) const;     // -> [tiles * side * side, D]
  void block(const Ctx& c, const Block& b, const Tensor& hidden, const Tensor& tiles) const;

  VisionConfig config_;
  int64_t downsample_, side_;  // side_: tokens of a row of a tile
  Weight patch_embed_;
  Tensor positions_;  // [patches, width]
  std::vector<Block> blocks_;
  Norm norm_;
  Weight project_up_, project_down_;
  Tensor newline_, separator_;  // [D]
};

}  // namespace saccade::deepseek_vl2
