// Language model of Qwen2.5-VL (qwen2_5_vl.md, section 4).
#pragma once

#include <vector>

#include "models/model.h"
#include "models/qwen2_5_vl/config.h"

namespace saccade::qwen2_5_vl {

class TextModel {
 public:
  TextModel(const Config& config, DType dtype, Weights& weights);

  // kv_layers[l]: [pages, 2*K*64*Dh] -> logits F32 [R, V].
  Tensor forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const;

  // Weights that every decoded token reads: all layers and the head.
  size_t bytes_per_token() const;
  // Arena bytes that forward() of so many rows needs at most.
  static size_t workspace_bytes(const Config& config, int64_t tokens, DType dtype);

 private:
  Config config_;
  DType dtype_;
  Tensor embed_;
  std::vector<ops::DecoderLayer> layers_;
  Tensor norm_;
  Weight head_;
};

}  // namespace saccade::qwen2_5_vl
