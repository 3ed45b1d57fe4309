#include "models/qwen2_5_vl/config.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/json_fields.h"

namespace saccade::qwen2_5_vl {
namespace {

// Limits far above any published model: sizes that pass them multiply without overflow.
constexpr int64_t kMaxLayers = 1000, kMaxHidden = 65536, kMaxIntermediate = int64_t{1} << 20, kMaxHeads = 4096;
constexpr int64_t kMaxVocab = int64_t{4} << 20, kMaxPositions = int64_t{1} << 24;
constexpr double kMaxTheta = 1e15;

void refuse_activation(const JsonFields& fields) {
  if (fields.text("hidden_act", "silu") != "silu") fields.wrong("hidden_act", "\"silu\"");
}

void require_divides(const JsonFields& fields, const char* key, int64_t divisor, int64_t value, const char* of) {
  if (value % divisor != 0) fail("{}: expected a divisor of {} {}, found {}", fields.name(key), of, value, divisor);
}

// An integer, or a list of equal integers as newer classes allow.
int64_t side(const JsonFields& fields, const char* key, int64_t missing, int64_t high) {
  const auto sides = fields.integers(key, 1, high);
  if (sides.empty() && !fields.find(key)) return missing;
  if (sides.empty() || std::ranges::any_of(sides, [&](int64_t s) { return s != sides[0]; }))
    fields.wrong(key, "an integer, or equal integers");
  return sides[0];
}

VisionConfig parse_vision(const JsonFields& fields) {
  VisionConfig v;
  refuse_activation(fields);
  v.depth = fields.integer("depth", v.depth, 1, kMaxLayers);
  v.hidden = fields.integer("hidden_size", v.hidden, 1, kMaxHidden);
  v.intermediate = fields.integer("intermediate_size", v.intermediate, 1, kMaxIntermediate);
  v.heads = fields.integer("num_heads", v.heads, 1, kMaxHeads);
  require_divides(fields, "num_heads", v.heads, v.hidden, "hidden_size");
  if (v.head_dim() % 4 != 0)
    fail("{}: hidden_size / num_heads must be a multiple of 4 for two-dimensional rope, found {}",
         fields.name("num_heads"), v.head_dim());
  v.patch = side(fields, "patch_size", v.patch, 256);
  v.merge = fields.integer("spatial_merge_size", v.merge, 1, 16);
  v.temporal_patch = side(fields, "temporal_patch_size", v.temporal_patch, 16);
  // Pictures are RGB. The hub writes in_chans, the class in_channels.
  v.in_channels = fields.integer("in_channels", fields.integer("in_chans", 3, 3, 3), 3, 3);
  v.window = fields.integer("window_size", v.window, 1, kMaxHidden);
  if (v.window % (v.patch * v.merge) != 0)
    fail("{}: expected a multiple of patch_size * spatial_merge_size = {}, found {}", fields.name("window_size"),
         v.patch * v.merge, v.window);
  v.out_hidden = fields.integer("out_hidden_size", v.out_hidden, 1, kMaxHidden);
  v.tokens_per_second = fields.number("tokens_per_second", v.tokens_per_second, 1e-3, 1e6);
  if (fields.find("fullatt_block_indexes"))
    v.full_attention_blocks = fields.integers("fullatt_block_indexes", 0, v.depth - 1);
  else
    std::erase_if(v.full_attention_blocks, [&](int64_t block) { return block >= v.depth; });
  return v;
}

void parse_rope(const JsonFields& text, Config& c) {
  // rope_scaling (until 4.x) wins over rope_parameters (5.x), which may hold rope_theta too.
  const char* key = text.find("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const JsonFields rope = text.object(key);
  c.rope_theta = text.number("rope_theta", c.rope_theta, 1e-3, kMaxTheta);
  c.rope_theta = rope.number("rope_theta", c.rope_theta, 1e-3, kMaxTheta);
  for (const char* type_key : {"rope_type", "type"}) {
    const std::string type = rope.text(type_key, "default");
    if (type != "default" && type != "mrope")
      rope.wrong(type_key, "\"mrope\" or \"default\" (scaled rope is not supported)");
  }
  rope.number("partial_rotary_factor", 1, 1, 1);
  if (rope.find("mrope_section")) c.mrope_sections = rope.integers("mrope_section", 0, kMaxHidden);
  const int64_t sum = std::accumulate(c.mrope_sections.begin(), c.mrope_sections.end(), int64_t{0});
  if (c.mrope_sections.size() != 3 || sum != c.head_dim() / 2)
    fail("{}: expected three sections that sum to half of head dim {}, found {}", rope.name("mrope_section"),
         c.head_dim(), json_excerpt(Json(c.mrope_sections)));
}

void refuse_unsupported(const JsonFields& root, const JsonFields& text) {
  for (const JsonFields* fields : {&root, &text}) {
    if (!fields->find("quantization_config")) continue;
    const std::string method = fields->object("quantization_config").text("quant_method", "unknown");
    fail("{}: quantised weights (method {}) are not supported; use the BF16 checkpoint",
         fields->name("quantization_config"), json_excerpt(Json(method)));
  }
  refuse_activation(text);
  if (text.boolean("use_sliding_window", false)) text.wrong("use_sliding_window", "false (not supported otherwise)");
  const Json* types = text.find("layer_types");
  if (!types) return;
  if (!types->is_array() || std::ranges::any_of(*types, [](const Json& t) { return t != "full_attention"; }))
    text.wrong("layer_types", "\"full_attention\" throughout (not supported otherwise)");
}

void parse_text(const JsonFields& text, Config& c) {
  c.layers = text.integer("num_hidden_layers", c.layers, 1, kMaxLayers);
  c.hidden = text.integer("hidden_size", c.hidden, 1, kMaxHidden);
  c.intermediate = text.integer("intermediate_size", c.intermediate, 1, kMaxIntermediate);
  c.heads = text.integer("num_attention_heads", c.heads, 1, kMaxHeads);
  require_divides(text, "num_attention_heads", c.heads, c.hidden, "hidden_size");
  if (c.head_dim() % 2 != 0)
    fail("{}: hidden_size / num_attention_heads must be even, found {}", text.name("num_attention_heads"),
         c.head_dim());
  // Present here, the reference's attention takes no other value either.
  text.integer("head_dim", c.head_dim(), c.head_dim(), c.head_dim());
  const int64_t missing = text.contains("num_key_value_heads") ? c.heads : c.kv_heads;  // null: one for each head
  c.kv_heads = text.integer("num_key_value_heads", missing, 1, kMaxHeads);
  require_divides(text, "num_key_value_heads", c.kv_heads, c.heads, "num_attention_heads");
  c.vocab = text.integer("vocab_size", c.vocab, 1, kMaxVocab);
  c.max_positions = text.integer("max_position_embeddings", c.max_positions, 1, kMaxPositions);
  c.rms_eps = text.number("rms_norm_eps", c.rms_eps, 0, 1);
  parse_rope(text, c);
}

void parse_tokens(const JsonFields& root, const JsonFields& text, Config& c) {
  const auto id = [&](const char* key, int32_t missing) {
    const auto value = static_cast<int32_t>(root.integer(key, missing, 0, c.vocab - 1));
    if (value >= c.vocab)
      fail("{}: missing, and its default {} is outside vocab_size {}", root.name(key), value, c.vocab);
    return value;
  };
  c.image_token = id("image_token_id", c.image_token);
  c.video_token = id("video_token_id", c.video_token);
  c.vision_start = id("vision_start_token_id", c.vision_start);
  c.vision_end = id("vision_end_token_id", c.vision_end);
  if (std::set{c.image_token, c.video_token, c.vision_start, c.vision_end}.size() != 4)
    fail("{}: expected four different ids for image, video, vision start and vision end, found {}, {}, {}, {}",
         root.name("image_token_id"), c.image_token, c.video_token, c.vision_start, c.vision_end);
  const JsonFields& eos = root.find("eos_token_id") ? root : text;
  for (const int64_t value : eos.integers("eos_token_id", 0, c.vocab - 1))
    c.eos_ids.push_back(static_cast<int32_t>(value));
}

}  // namespace

Config Config::parse(const Json& json, const std::string& origin) {
  const JsonFields root(json, origin);
  const JsonFields text = root.find("text_config") ? root.object("text_config") : root;
  Config c;
  refuse_unsupported(root, text);
  parse_text(text, c);
  parse_tokens(root, text, c);
  // Saves before 5.x may hold it inside text_config, with the outer one left at its default.
  c.tie_embeddings = root.boolean("tie_word_embeddings", false) || text.boolean("tie_word_embeddings", false);
  const JsonFields vision = root.object("vision_config");
  c.vision = parse_vision(vision);
  if (c.vision.out_hidden != c.hidden)
    fail("{}: expected the hidden_size of the text model, {}, found {}", vision.name("out_hidden_size"), c.hidden,
         c.vision.out_hidden);
  return c;
}

Config Config::published(const std::string& name) {
  struct Size {
    const char* name;
    int64_t layers, hidden, intermediate, heads, kv_heads, vocab, vision_intermediate;
    bool tied;
  };
  constexpr Size kSizes[] = {{"qwen2.5-vl-3b", 36, 2048, 11008, 16, 2, 151936, 3420, true},
                             {"qwen2.5-vl-7b", 28, 3584, 18944, 28, 4, 152064, 3420, false},
                             {"qwen2.5-vl-32b", 64, 5120, 27648, 40, 8, 152064, 3456, false},
                             {"qwen2.5-vl-72b", 80, 8192, 29568, 64, 8, 152064, 3456, false}};
  std::string known;
  for (const Size& size : kSizes) {
    known += (known.empty() ? "" : ", ") + std::string(size.name);
    if (size.name != name) continue;
    Config c;
    c.layers = size.layers;
    c.hidden = c.vision.out_hidden = size.hidden;
    c.intermediate = size.intermediate;
    c.heads = size.heads;
    c.kv_heads = size.kv_heads;
    c.vocab = size.vocab;
    c.max_positions = 128000;
    c.tie_embeddings = size.tied;
    c.rms_eps = 1e-6;
    c.eos_ids = {151645, 151643};
    c.vision.hidden = 1280;
    c.vision.intermediate = size.vision_intermediate;
    c.vision.tokens_per_second = 2;
    return c;
  }
  fail("no published shapes named {}; known: {}", json_excerpt(Json(name)), known);
}

Json Config::to_json() const {
  return {{"model_type", "qwen2_5_vl"},
          {"num_hidden_layers", layers},
          {"hidden_size", hidden},
          {"intermediate_size", intermediate},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"vocab_size", vocab},
          {"max_position_embeddings", max_positions},
          {"tie_word_embeddings", tie_embeddings},
          {"rope_theta", rope_theta},
          {"rms_norm_eps", rms_eps},
          {"rope_scaling", {{"type", "mrope"}, {"mrope_section", mrope_sections}}},
          {"eos_token_id", eos_ids},
          {"image_token_id", image_token},
          {"video_token_id", video_token},
          {"vision_start_token_id", vision_start},
          {"vision_end_token_id", vision_end},
          {"vision_config",
           {{"depth", vision.depth},
            {"hidden_size", vision.hidden},
            {"intermediate_size", vision.intermediate},
            {"num_heads", vision.heads},
            {"patch_size", vision.patch},
            {"spatial_merge_size", vision.merge},
            {"temporal_patch_size", vision.temporal_patch},
            {"in_channels", vision.in_channels},
            {"window_size", vision.window},
            {"out_hidden_size", vision.out_hidden},
            {"fullatt_block_indexes", vision.full_attention_blocks},
            {"tokens_per_second", vision.tokens_per_second}}}};
}

}  // namespace saccade::qwen2_5_vl
