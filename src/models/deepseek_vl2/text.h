// Language model of DeepSeek-VL2 (deepseek_vl2.md, section 4).
#pragma once

#include <vector>

#include "models/deepseek_vl2/config.h"
#include "models/model.h"

namespace saccade::deepseek_vl2 {

class TextModel {
 public:
  TextModel(const Config& config, DType dtype, Weights& weights);

  // kv_layers[l]: [pages, 64 * kv_values] -> logits F32 [R, V].
  Tensor forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const;

  // Weights that every decoded token reads: of the routed experts, those that one token chooses.
  size_t bytes_per_token() const;
  // Arena bytes that forward() of so many rows needs at most, over the longest context.
  static size_t workspace_bytes(const Config& config, int64_t tokens, DType dtype);

 private:
  struct Attention {
    Weight qkv;            // plain
    Weight q, kv_a, kv_b;  // latent
    Tensor latent_norm;
    Weight output;
  };
  struct Experts {
    Tensor gate, bias;  // bias: empty, or of the choice
    std::vector<Weight> gate_up, down;
    Weight shared_gate_up, shared_down;  // one of the width of all shared experts; may be absent
  };
  struct Layer {
    Tensor attention_norm, mlp_norm;
    Attention attention;
    Weight gate_up, down;  // dense layers
    Experts experts;       // the others
  };

  Attention load_attention(const std::string& prefix, Weights& weights) const;
  Experts load_experts(const std::string& prefix, Weights& weights) const;

  void layer(const Ctx& c, const Layer& w, const PagedKv& kv, const Tensor& rope, const Tensor& kv_layer,
             const Tensor& hidden) const;
  Tensor plain_attention(const Ctx& c, const Attention& w, const PagedKv& kv, const Tensor& rope,
                         const Tensor& kv_layer, const Tensor& x) const;
  Tensor latent_attention(const Ctx& c, const Attention& w, const PagedKv& kv, const Tensor& rope,
                          const Tensor& kv_layer, const Tensor& x) const;
  Tensor mixture(const Ctx& c, const Experts& w, const Tensor& x) const;

  Config config_;
  DType dtype_;
  Tensor embed_, norm_;
  std::vector<Layer> layers_;
  Weight head_;
};

}  // namespace saccade::deepseek_vl2
