// Vision tower of Qwen2.5-VL (qwen2_5_vl.md, section 3).
#pragma once

#include <span>
#include <vector>

#include "models/qwen2_5_vl/config.h"
#include "ops/ops.h"
#include "weights/weights.h"

namespace saccade::qwen2_5_vl {

// Patches of an image or clip.
struct VisionGrid {
  int64_t t = 0, h = 0, w = 0;

  int64_t patches() const { return t * h * w; }
};

// Where each row of the tower comes from and what it attends to, for images and clips one after the other.
// transformers 5.17, vision_utils.py.
struct VisionLayout {
  std::vector<int32_t> window_order;    // [P/4] merge units, window by window
  std::vector<int32_t> inverse_order;   // [P/4]
  std::vector<int32_t> positions;       // [2,P] row and column of each patch, in window order
  std::vector<int32_t> window_offsets;  // segments of window layers, in patches
  std::vector<int32_t> frame_offsets;   // segments of full layers: one per temporal slice
  int64_t longest_window = 0, longest_frame = 0;

  VisionLayout(std::span<const VisionGrid> grids, const VisionConfig& config);
};

class VisionTower {
 public:
  VisionTower(const VisionConfig& config, Weights& weights);

  // pixels [P, 3*2*14*14] in the activation dtype, P the patches of the grids -> embeddings [P/4, out_hidden].
  Tensor forward(const Ctx& c, const Tensor& pixels, std::span<const VisionGrid> grids) const;

  // Arena bytes that forward() needs at most, for the memory plan.
  static size_t workspace_bytes(const VisionConfig& config, int64_t patches, DType dtype);

 private:
  struct Block {
    Tensor norm1, norm2;
    Weight qkv, proj, gate_up, down;
  };

  void block(const Ctx& c, const Block& b, const Tensor& hidden, const Tensor& rope,
             const ops::Segments& segments) const;

  VisionConfig config_;
  Weight patch_embed_;
  std::vector<Block> blocks_;
  std::vector<bool> full_attention_;
  Tensor merger_norm_;
  Weight merger_up_, merger_down_;
};

}  // namespace saccade::qwen2_5_vl
