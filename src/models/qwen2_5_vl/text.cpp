#include "models/qwen2_5_vl/text.h"

namespace saccade::qwen2_5_vl {

TextModel::TextModel(const Config& config, DType dtype, Weights& weights) : config_(config), dtype_(dtype) {
  const int64_t hidden = config.hidden, ffn = config.intermediate, head_dim = config.head_dim();
  const int64_t q_rows = config.heads * head_dim, kv_rows = config.kv_heads * head_dim;
  embed_ = weights.table("model.embed_tokens.weight", {config.vocab, hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    ops::DecoderLayer w;
    w.attention_norm = weights.tensor(prefix + "input_layernorm.weight", {hidden});
    w.mlp_norm = weights.tensor(prefix + "post_attention_layernorm.weight", {hidden});
    w.qkv = weights.qkv({attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows},
                        {attention + "v_proj", kv_rows}, head_dim, hidden, true);
    w.output = weights.linear({{attention + "o_proj", hidden}}, q_rows, false);
    w.gate_up = weights.gate_up(mlp + "gate_proj", mlp + "up_proj", ffn, hidden, false);
    w.down = weights.linear({{mlp + "down_proj", hidden}}, ffn, false);
    layers_.push_back(w);
  }
  norm_ = weights.tensor("model.norm.weight", {hidden});
  head_ = weights.linear({{config.tie_embeddings ? "model.embed_tokens" : "lm_head", config.vocab}}, hidden, false);
}

Tensor TextModel::forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const {
  c.tap("positions", batch.positions);
  Tensor h = ops::embed(c, embed_, batch.ids, dtype_);
  for (const Batch::Span& span : batch.spans) {
    ops::copy_(c, h.slice(span.row, span.row + span.embeddings.dim(0)), span.embeddings);
  }
  c.tap("text.embed", h);
  const Tensor rope =
      ops::rope_table(c, batch.positions, config_.mrope_sections, config_.rope_theta, config_.head_dim(), dtype_);
  std::vector<Tensor> cache;
  for (const Tensor& t : kv_layers)
    cache.push_back(t.reshaped({t.dim(0), 2, config_.kv_heads, kPageTokens, config_.head_dim()}));
  const ops::Decoder decoder = {.layers = layers_,
                                .kv_layers = cache,
                                .heads = config_.heads,
                                .kv_heads = config_.kv_heads,
                                .head_dim = config_.head_dim(),
                                .eps = static_cast<float>(config_.rms_eps),
                                .norm = norm_,
                                .head = head_};
  if (ops::fuses_decode(c, decoder, batch.kv, h.dim(0))) return ops::decode(c, decoder, batch.kv, rope, h);
  for (size_t i = 0; i < layers_.size(); ++i) {
    ops::decoder_layer_(c, decoder, i, batch.kv, rope, h);
    c.tap("text.layer", static_cast<int>(i), h);
  }
  if (batch.logit_rows.dim(0) == 0) return c.arena.tensor(DType::kF32, {0, config_.vocab});
  const Tensor last = ops::gather_rows(c, h, batch.logit_rows);
  const Tensor x = ops::rms_norm(c, last, norm_, decoder.eps);
  c.tap("text.norm", x);
  const Tensor logits = ops::logits(c, x, head_);
  c.tap("text.logits", logits);
  return logits;
}

size_t TextModel::bytes_per_token() const {
  size_t bytes = head_.bytes() + norm_.bytes();
  for (const ops::DecoderLayer& w : layers_) {
    for (const Weight* m : {&w.qkv, &w.output, &w.gate_up, &w.down}) bytes += m->bytes();
    bytes += w.attention_norm.bytes() + w.mlp_norm.bytes();
  }
  return bytes;
}

size_t TextModel::workspace_bytes(const Config& config, int64_t tokens, DType dtype) {
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t heads_width = (2 * config.heads + 2 * config.kv_heads) * config.head_dim();
  const int64_t row = (4 * config.hidden + 2 * heads_width + 2 * config.intermediate) * element + config.head_dim() * 4;
  return static_cast<size_t>(tokens * row);
}

}  // namespace saccade::qwen2_5_vl
