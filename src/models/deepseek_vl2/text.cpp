#include "models/deepseek_vl2/text.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace saccade::deepseek_vl2 {
namespace {

constexpr float kLatentNormEps = 1e-6f;  // the default of the reference's norm class, not rms_norm_eps

// Sequences [begin, end) of a step, as a step of their own.
PagedKv part_of(const Ctx& c, const PagedKv& kv, int64_t begin, int64_t end) {
  const auto* offsets = kv.q_offsets.as<int32_t>();
  PagedKv part;
  part.q_offsets = c.arena.tensor(DType::kI32, {end - begin + 1});
  for (int64_t i = begin; i <= end; ++i) part.q_offsets.as<int32_t>()[i - begin] = offsets[i] - offsets[begin];
  part.kv_lens = kv.kv_lens.slice(begin, end);
  part.page_table = kv.page_table.slice(begin, end);
  part.slots = kv.slots.slice(offsets[begin], offsets[end]);
  return part;
}

}  // namespace

TextModel::TextModel(const Config& config, DType dtype, Weights& weights) : config_(config), dtype_(dtype) {
  const int64_t hidden = config.hidden;
  embed_ = weights.table("language.model.embed_tokens.weight", {config.vocab, hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = fmt::format("language.model.layers.{}.", i), mlp = prefix + "mlp.";
    Layer w;
    w.attention_norm = weights.tensor(prefix + "input_layernorm.weight", {hidden});
    w.mlp_norm = weights.tensor(prefix + "post_attention_layernorm.weight", {hidden});
    w.attention = load_attention(prefix + "self_attn.", weights);
    if (config.moe(i)) {
      w.experts = load_experts(mlp, weights);
    } else {
      w.gate_up = weights.linear({{mlp + "gate_proj", config.ffn}, {mlp + "up_proj", config.ffn}}, hidden, false);
      w.down = weights.linear({{mlp + "down_proj", hidden}}, config.ffn, false);
    }
    layers_.push_back(std::move(w));
  }
  norm_ = weights.tensor("language.model.norm.weight", {hidden});
  head_ = weights.linear({{"language.lm_head", config.vocab}}, hidden, false);
}

TextModel::Attention TextModel::load_attention(const std::string& prefix, Weights& weights) const {
  const Config& config = config_;
  const int64_t hidden = config.hidden, q_rows = config.heads * config.head_dim();
  Attention w;
  if (config.mla) {
    w.q = weights.linear({{prefix + "q_proj", q_rows}}, hidden, false);
    w.kv_a = weights.linear({{prefix + "kv_a_proj_with_mqa", config.latent + config.rope}}, hidden, false);
    w.latent_norm = weights.tensor(prefix + "kv_a_layernorm.weight", {config.latent});
    w.kv_b =
        weights.linear({{prefix + "kv_b_proj", config.heads * (config.nope + config.value)}}, config.latent, false);
  } else {
    const int64_t kv_rows = config.kv_heads * config.head_dim();
    w.qkv = weights.linear({{prefix + "q_proj", q_rows}, {prefix + "k_proj", kv_rows}, {prefix + "v_proj", kv_rows}},
                           hidden, false);
  }
  w.output = weights.linear({{prefix + "o_proj", hidden}}, config.heads * config.value_dim(), false);
  return w;
}

TextModel::Experts TextModel::load_experts(const std::string& prefix, Weights& weights) const {
  const int64_t hidden = config_.hidden, ffn = config_.moe_ffn, shared = config_.shared_experts * ffn;
  const auto gate_up = [&](const std::string& name, int64_t rows) {
    return weights.linear({{name + "gate_proj", rows}, {name + "up_proj", rows}}, hidden, false);
  };
  Experts w;
  w.gate = weights.table(prefix + "gate.weight", {config_.experts, hidden});
  if (config_.routing_bias) w.bias = weights.tensor(prefix + "gate.e_score_correction_bias", {config_.experts});
  for (int64_t e = 0; e < config_.experts; ++e) {
    const std::string name = fmt::format("{}experts.{}.", prefix, e);
    w.gate_up.push_back(gate_up(name, ffn));
    w.down.push_back(weights.linear({{name + "down_proj", hidden}}, ffn, false));
  }
  if (shared > 0) {
    w.shared_gate_up = gate_up(prefix + "shared_experts.", shared);
    w.shared_down = weights.linear({{prefix + "shared_experts.down_proj", hidden}}, shared, false);
  }
  return w;
}

Tensor TextModel::forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const {
  c.tap("positions", batch.positions);
  Tensor h = ops::embed(c, embed_, batch.ids, dtype_);
  for (const Batch::Span& span : batch.spans) {
    ops::copy_(c, h.slice(span.row, span.row + span.embeddings.dim(0)), span.embeddings);
  }
  c.tap("text.embed", h);
  const int64_t turned = config_.mla ? config_.rope : config_.head_dim();
  const Tensor rope = ops::rope_table(c, batch.positions, std::array{turned / 2}, config_.rope_theta, turned, dtype_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    layer(c, layers_[i], batch.kv, rope, kv_layers[i], h);
    c.tap("text.layer", static_cast<int>(i), h);
  }
  if (batch.logit_rows.dim(0) == 0) return c.arena.tensor(DType::kF32, {0, config_.vocab});
  const Tensor last = ops::gather_rows(c, h, batch.logit_rows);
  const Tensor x = ops::rms_norm(c, last, norm_, static_cast<float>(config_.rms_eps));
  c.tap("text.norm", x);
  const Tensor logits = ops::logits(c, x, head_);
  c.tap("text.logits", logits);
  return logits;
}

void TextModel::layer(const Ctx& c, const Layer& w, const PagedKv& kv, const Tensor& rope, const Tensor& kv_layer,
                      const Tensor& hidden) const {
  const auto scratch = c.arena.scope();
  const auto eps = static_cast<float>(config_.rms_eps);
  const Tensor x = ops::rms_norm(c, hidden, w.attention_norm, eps);
  const Tensor attended = config_.mla ? latent_attention(c, w.attention, kv, rope, kv_layer, x)
                                      : plain_attention(c, w.attention, kv, rope, kv_layer, x);
  ops::linear_add_(c, hidden, attended, w.attention.output);
  const Tensor y = ops::rms_norm(c, hidden, w.mlp_norm, eps);
  if (w.gate_up.parts > 0) {
    ops::linear_add_(c, hidden, ops::gate_up_silu(c, y, w.gate_up), w.down);
  } else {
    ops::add_rows_(c, hidden, mixture(c, w.experts, y));
  }
}

Tensor TextModel::plain_attention(const Ctx& c, const Attention& w, const PagedKv& kv, const Tensor& rope,
                                  const Tensor& kv_layer, const Tensor& x) const {
  const int64_t dim = config_.head_dim();
  const Tensor cache = kv_layer.reshaped({kv_layer.dim(0), 2, config_.kv_heads, kPageTokens, dim});
  const Tensor q = ops::qkv_rope_append(c, ops::linear(c, x, w.qkv), rope, cache, kv, config_.heads, config_.kv_heads);
  return ops::paged_attention(c, q, cache, kv, 1.0f / std::sqrt(static_cast<float>(dim)));
}

// Prompts take the expanded form, generated tokens the absorbed one.
Tensor TextModel::latent_attention(const Ctx& c, const Attention& w, const PagedKv& kv, const Tensor& rope,
                                   const Tensor& kv_layer, const Tensor& x) const {
  const int64_t rows = x.dim(0), sequences = kv.kv_lens.dim(0), dim = config_.head_dim(), value = config_.value;
  const Tensor cache = kv_layer.reshaped({kv_layer.dim(0), kPageTokens, config_.latent + config_.rope});
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const Tensor q = ops::linear(c, x, w.q).reshaped({rows, config_.heads, dim});
  ops::mla_rope_append_(c, q, ops::linear(c, x, w.kv_a), w.latent_norm, kLatentNormEps, rope, cache, kv);
  if (kv.decodes == sequences) return ops::mla_absorbed_attention(c, q, w.kv_b, cache, kv, value, scale);
  if (kv.decodes == 0) return ops::mla_expanded_attention(c, q, w.kv_b, cache, kv, value, scale);

  const int64_t decoded = kv.decode_rows();
  const Tensor y = c.arena.tensor(x.dtype, {rows, config_.heads * value});
  const auto scratch = c.arena.scope();
  const PagedKv decodes = part_of(c, kv, 0, kv.decodes), prompts = part_of(c, kv, kv.decodes, sequences);
  ops::copy_(c, y.slice(0, decoded),
             ops::mla_absorbed_attention(c, q.slice(0, decoded), w.kv_b, cache, decodes, value, scale));
  ops::copy_(c, y.slice(decoded, rows),
             ops::mla_expanded_attention(c, q.slice(decoded, rows), w.kv_b, cache, prompts, value, scale));
  return y;
}

// The routed experts' weighted sum is rounded, then the shared experts are added.
Tensor TextModel::mixture(const Ctx& c, const Experts& w, const Tensor& x) const {
  const ops::Routes routes = ops::moe_route(c, x, w.gate, w.bias, config_.routing);
  const Tensor wide = ops::grouped_gate_up_silu(c, x, routes, w.gate_up);
  const Tensor y = ops::moe_combine(c, ops::grouped_linear(c, wide, routes, w.down), routes);
  if (config_.shared_experts > 0) ops::linear_add_(c, y, ops::gate_up_silu(c, x, w.shared_gate_up), w.shared_down);
  return y;
}

size_t TextModel::bytes_per_token() const {
  size_t bytes = head_.bytes() + norm_.bytes();
  for (const Layer& w : layers_) {
    bytes += w.attention_norm.bytes() + w.mlp_norm.bytes() + w.gate_up.bytes() + w.down.bytes();
    const Attention& a = w.attention;
    for (const Weight* m : {&a.qkv, &a.q, &a.kv_a, &a.kv_b, &a.output}) bytes += m->bytes();
    if (a.latent_norm) bytes += a.latent_norm.bytes();
    const Experts& e = w.experts;
    if (e.gate_up.empty()) continue;
    bytes += e.gate.bytes() + (e.bias ? e.bias.bytes() : 0) + e.shared_gate_up.bytes() + e.shared_down.bytes();
    bytes += static_cast<size_t>(config_.routing.top_k) * (e.gate_up[0].bytes() + e.down[0].bytes());
  }
  return bytes;
}

size_t TextModel::workspace_bytes(const Config& config, int64_t tokens, DType dtype) {
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t heads = config.heads, dim = config.head_dim(), value = config.value_dim();
  int64_t attention = heads * (2 * dim + 2 * value) + 2 * config.kv_values();
  int64_t context = 0;  // keys and values of one sequence, made for its prompt
  if (config.mla) {
    attention += heads * (2 * config.latent + config.rope);
    context = config.max_positions * (config.latent + heads * (2 * config.nope + config.rope + value));
  }
  const int64_t chosen = config.experts > 0 ? config.routing.top_k : 0;
  const int64_t mixture =
      chosen * (config.moe_ffn + 2 * config.hidden) + config.shared_experts * config.moe_ffn + config.hidden;
  const int64_t row = 4 * config.hidden + attention + std::max(2 * config.ffn, mixture);
  return static_cast<size_t>((tokens * row + context) * element + tokens * dim * 4);
}

}  // namespace saccade::deepseek_vl2
