#include "models/deepseek_vl2/config.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_fields.h"

namespace saccade::deepseek_vl2 {
namespace {

// Limits far above any published model: sizes that pass them multiply without overflow.
constexpr int64_t kMaxLayers = 1000, kMaxHidden = 65536, kMaxFfn = int64_t{1} << 20, kMaxHeads = 4096;
constexpr int64_t kMaxVocab = int64_t{4} << 20, kMaxPositions = int64_t{1} << 24, kMaxExperts = 4096;
constexpr int64_t kMaxTiles = 64, kMaxTileSide = 4096;

void require(const JsonFields& fields, const char* key, const std::string& missing, const char* supported) {
  if (fields.text(key, missing) != supported)
    fields.wrong(key, fmt::format("\"{}\" (not supported otherwise)", supported));
}

// A key that may only be missing or null.
void refuse(const JsonFields& fields, const char* key) {
  if (fields.find(key)) fields.wrong(key, "null (not supported otherwise)");
}

void refuse_true(const JsonFields& fields, const char* key) {
  if (fields.boolean(key, false)) fields.wrong(key, "false (not supported otherwise)");
}

void parse_attention(const JsonFields& text, Config& c) {
  c.heads = text.integer("num_attention_heads", c.heads, 1, kMaxHeads);
  const int64_t missing = text.contains("num_key_value_heads") ? c.heads : c.kv_heads;  // null: one for each head
  c.kv_heads = text.integer("num_key_value_heads", std::min(missing, c.heads), 1, kMaxHeads);
  c.mla = text.boolean("use_mla", true);
  refuse_true(text, "attention_bias");
  refuse(text, "rope_scaling");
  c.rope_theta = text.number("rope_theta", c.rope_theta, 1e-3, 1e15);
  if (c.mla) {
    // The class default of q_lora_rank is a number, so its absence means what we do not compute.
    if (!text.contains("q_lora_rank")) fail("{}: missing, expected null", text.name("q_lora_rank"));
    refuse(text, "q_lora_rank");
    c.latent = text.integer("kv_lora_rank", c.latent, 1, kMaxHidden);
    c.nope = text.integer("qk_nope_head_dim", c.nope, 1, kMaxHidden);
    c.rope = text.integer("qk_rope_head_dim", c.rope, 2, kMaxHidden);
    c.value = text.integer("v_head_dim", c.value, 1, kMaxHidden);
    if (c.rope % 2 != 0) text.wrong("qk_rope_head_dim", "an even number");
    return;
  }
  if (c.heads % c.kv_heads != 0)
    text.wrong("num_key_value_heads", fmt::format("a divisor of num_attention_heads {}", c.heads));
  if (c.hidden % c.heads != 0 || c.hidden / c.heads % 2 != 0)
    text.wrong("num_attention_heads", fmt::format("a divisor of hidden_size {} with an even quotient", c.hidden));
}

void parse_experts(const JsonFields& text, Config& c) {
  if (!text.find("n_routed_experts")) return;  // all layers are dense
  c.experts = text.integer("n_routed_experts", 0, 1, kMaxExperts);
  c.shared_experts = text.integer("n_shared_experts", 0, 0, kMaxExperts);
  c.moe_ffn = text.integer("moe_intermediate_size", c.moe_ffn, 1, kMaxFfn);
  if (c.shared_experts * c.moe_ffn > kMaxFfn)
    text.wrong("n_shared_experts", fmt::format("at most {} in width together", kMaxFfn));
  c.first_moe = text.integer("first_k_dense_replace", c.first_moe, 0, kMaxLayers);
  c.moe_every = text.integer("moe_layer_freq", c.moe_every, 1, kMaxLayers);
  if (!text.find("num_experts_per_tok")) fail("{}: missing", text.name("num_experts_per_tok"));
  c.routing.top_k = text.integer("num_experts_per_tok", 1, 1, c.experts);
  // The class default of topk_method, "gready", is none that the original knows.
  if (!text.find("topk_method")) fail("{}: missing, expected \"greedy\" or \"noaux_tc\"", text.name("topk_method"));
  const std::string score = text.text("scoring_func", "softmax"), method = text.text("topk_method", "");
  if (score != "softmax" && score != "sigmoid") text.wrong("scoring_func", "\"softmax\" or \"sigmoid\"");
  c.routing.score = score == "sigmoid" ? ops::Routing::Score::kSigmoid : ops::Routing::Score::kSoftmax;
  if (method != "greedy" && method != "noaux_tc") text.wrong("topk_method", "\"greedy\" or \"noaux_tc\"");
  c.routing_bias = method == "noaux_tc";
  for (const char* key : {"n_group", "topk_group"}) text.integer(key, 1, 1, 1);
  c.routing.normalise = text.boolean("norm_topk_prob", false) && c.routing.top_k > 1;
  c.routing.scale = static_cast<float>(text.number("routed_scaling_factor", 1, -1e6, 1e6));
}

void parse_text(const JsonFields& text, Config& c) {
  refuse(text, "quantization_config");
  require(text, "hidden_act", "silu", "silu");
  refuse_true(text, "tie_word_embeddings");
  c.layers = text.integer("num_hidden_layers", c.layers, 1, kMaxLayers);
  c.hidden = text.integer("hidden_size", c.hidden, 1, kMaxHidden);
  c.ffn = text.integer("intermediate_size", c.ffn, 1, kMaxFfn);
  c.vocab = text.integer("vocab_size", c.vocab, 1, kMaxVocab);
  c.max_positions = text.integer("max_position_embeddings", c.max_positions, 1, kMaxPositions);
  c.rms_eps = text.number("rms_norm_eps", c.rms_eps, 0, 1);
  parse_attention(text, c);
  parse_experts(text, c);
  const auto id = [&](const char* key, int32_t missing) {
    const auto value = static_cast<int32_t>(text.integer(key, missing, 0, c.vocab - 1));
    if (value >= c.vocab)
      fail("{}: missing, and its default {} is outside vocab_size {}", text.name(key), value, c.vocab);
    return value;
  };
  c.bos = id("bos_token_id", c.bos);
  c.eos = id("eos_token_id", c.eos);
}

VisionConfig parse_vision(const JsonFields& fields) {
  VisionConfig v;
  v.layers = fields.integer("layers", v.layers, 1, kMaxLayers);
  v.hidden = fields.integer("width", v.hidden, 1, kMaxHidden);
  v.heads = fields.integer("heads", v.heads, 1, kMaxHeads);
  v.patch = fields.integer("patch_size", v.patch, 1, 256);
  v.image_size = fields.integer("image_size", v.image_size, v.patch, kMaxTileSide);
  v.mlp_ratio = fields.number("mlp_ratio", v.mlp_ratio, 1.0 / kMaxHidden, 64);
  if (v.hidden % v.heads != 0 || v.head_dim() % 2 != 0)
    fields.wrong("heads", fmt::format("a divisor of width {} with an even quotient", v.hidden));
  if (v.ffn() < 1) fields.wrong("mlp_ratio", "at least 1 / width");
  refuse_true(fields, "class_token");
  if (!fields.boolean("ignore_head", true)) fields.wrong("ignore_head", "true (not supported otherwise)");
  require(fields, "global_pool", "map", "map");
  return v;
}

void parse_projector(const JsonFields& fields, Config& c) {
  require(fields, "projector_type", "downsample_mlp_gelu", "downsample_mlp_gelu");
  fields.integer("input_dim", c.vision.hidden, c.vision.hidden, c.vision.hidden);
  fields.integer("n_embed", c.hidden, c.hidden, c.hidden);
  fields.integer("depth", 2, 2, 2);
  fields.integer("mlp_ratio", 1, 1, 1);
  refuse_true(fields, "token_pooling");
  c.downsample = fields.integer("downsample_ratio", c.downsample, 1, 16);
}

void parse_resolutions(const JsonFields& root, Config& c) {
  const char* key = "candidate_resolutions";
  const int64_t side = c.vision.image_size;
  const Json* list = root.find(key);
  const Json one = Json::array({{384, 384}});  // the class default
  if (!list) list = &one;
  if (!list->is_array() || list->empty()) root.wrong(key, "a list of [width, height]");
  for (const Json& item : *list) {
    const bool pair = item.is_array() && item.size() == 2 && item[0].is_number_integer() && item[1].is_number_integer();
    const Size size = pair ? Size{item[0].get<int64_t>(), item[1].get<int64_t>()} : Size{};
    const auto fits = [&](int64_t n) { return n > 0 && n % side == 0 && n / side <= kMaxTiles; };
    if (!fits(size.width) || !fits(size.height) || size.width / side * (size.height / side) > kMaxTiles)
      fail("{}: expected [width, height], multiples of image_size {} with at most {} tiles, found {}", root.name(key),
           side, kMaxTiles, json_excerpt(item));
    c.resolutions.push_back(size);
  }
  // The original takes the size of a tile from here.
  if (c.resolutions[0].width != side)
    fail("{}: expected image_size {} as the first width, found {}", root.name(key), side, c.resolutions[0].width);
}

}  // namespace

Config Config::parse(const Json& json, const std::string& origin) {
  const JsonFields root(json, origin);
  Config c;
  refuse(root, "quantization_config");
  require(root, "tile_tag", "", "2D");
  require(root, "global_view_pos", "head", "head");
  parse_text(root.object("language_config"), c);
  c.vision = parse_vision(root.object("vision_config"));
  parse_projector(root.object("projector_config"), c);
  parse_resolutions(root, c);
  return c;
}

Config Config::published(const std::string& name) {
  struct Shape {
    const char* name;
    int64_t layers, hidden, ffn, heads, vocab, experts, moe_ffn;
    bool mla, noaux;
    int32_t bos, eos;
  };
  constexpr Shape kShapes[] = {
      {"deepseek-vl2-tiny", 12, 1280, 6848, 10, 129280, 64, 896, false, false, 0, 1},
      {"deepseek-vl2-small", 27, 2048, 10944, 16, 102400, 64, 1408, true, false, 100000, 100001},
      {"deepseek-vl2-base", 30, 2560, 12288, 32, 129280, 72, 1536, true, true, 0, 1}};
  constexpr Size kTiles[] = {{1, 1}, {1, 2}, {2, 1}, {1, 3}, {3, 1}, {1, 4}, {4, 1}, {2, 2},
                             {1, 5}, {5, 1}, {1, 6}, {6, 1}, {2, 3}, {3, 2}, {1, 7}, {7, 1},
                             {1, 8}, {8, 1}, {2, 4}, {4, 2}, {1, 9}, {9, 1}, {3, 3}};
  std::string known;
  for (const Shape& shape : kShapes) {
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
    if (shape.name != name) continue;
    Config c;
    c.layers = shape.layers;
    c.hidden = shape.hidden;
    c.ffn = shape.ffn;
    c.heads = c.kv_heads = shape.heads;
    c.vocab = shape.vocab;
    c.max_positions = 4096;
    c.bos = shape.bos;
    c.eos = shape.eos;
    c.mla = shape.mla;
    c.experts = shape.experts;
    c.shared_experts = 2;
    c.moe_ffn = shape.moe_ffn;
    c.first_moe = 1;
    c.routing.top_k = 6;
    if (shape.noaux) c.routing = {ops::Routing::Score::kSigmoid, 6, true, 2.0f};
    c.routing_bias = shape.noaux;
    c.vision = {.layers = 27, .hidden = 1152, .heads = 16, .patch = 14, .image_size = 384, .mlp_ratio = 3.7362};
    for (const Size& t : kTiles) c.resolutions.push_back({t.width * 384, t.height * 384});
    return c;
  }
  fail("no published shapes named {}; known: {}", json_excerpt(Json(name)), known);
}

Json Config::to_json() const {
  Json language = {{"model_type", "deepseek_v2"},
                   {"num_hidden_layers", layers},
                   {"hidden_size", hidden},
                   {"intermediate_size", ffn},
                   {"num_attention_heads", heads},
                   {"num_key_value_heads", kv_heads},
                   {"vocab_size", vocab},
                   {"max_position_embeddings", max_positions},
                   {"rope_theta", rope_theta},
                   {"rms_norm_eps", rms_eps},
                   {"bos_token_id", bos},
                   {"eos_token_id", eos},
                   {"use_mla", mla}};
  if (mla) {
    language["q_lora_rank"] = nullptr;
    language["kv_lora_rank"] = latent;
    language["qk_nope_head_dim"] = nope;
    language["qk_rope_head_dim"] = rope;
    language["v_head_dim"] = value;
  }
  if (experts > 0) {
    language["n_routed_experts"] = experts;
    language["n_shared_experts"] = shared_experts;
    language["num_experts_per_tok"] = routing.top_k;
    language["moe_intermediate_size"] = moe_ffn;
    language["first_k_dense_replace"] = first_moe;
    language["moe_layer_freq"] = moe_every;
    language["scoring_func"] = routing.score == ops::Routing::Score::kSigmoid ? "sigmoid" : "softmax";
    language["topk_method"] = routing_bias ? "noaux_tc" : "greedy";
    language["norm_topk_prob"] = routing.normalise;
    language["routed_scaling_factor"] = routing.scale;
  }
  Json sizes = Json::array();
  for (const Size& size : resolutions) sizes.push_back({size.width, size.height});
  return {{"model_type", "deepseek_vl_v2"},
          {"language_config", language},
          {"vision_config",
           {{"layers", vision.layers},
            {"width", vision.hidden},
            {"heads", vision.heads},
            {"patch_size", vision.patch},
            {"image_size", vision.image_size},
            {"mlp_ratio", vision.mlp_ratio}}},
          {"projector_config",
           {{"projector_type", "downsample_mlp_gelu"},
            {"input_dim", vision.hidden},
            {"n_embed", hidden},
            {"downsample_ratio", downsample}}},
          {"candidate_resolutions", sizes},
          {"tile_tag", "2D"},
          {"global_view_pos", "head"}};
}

}  // namespace saccade::deepseek_vl2
