#include "models/qwen2_5_vl/config.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace saccade::qwen2_5_vl {
namespace {

using testing::HasSubstr;

// The hub's config.json of 3B.
const Json& flat() {
  static const Json json = parse_json(R"({
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
    "vision_config": {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
      "num_heads": 16, "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
      "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
      "temporal_patch_size": 2},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}})",
                                      "flat");
  return json;
}

// The same as transformers 5.x saves it.
Json nested() {
  Json json = flat(), text = Json::object();
  for (const char* key : {"eos_token_id", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
                          "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
                          "tie_word_embeddings", "use_sliding_window", "vocab_size"}) {
    text[key] = json[key];
    json.erase(key);
  }
  json.erase("rope_theta");
  json.erase("rope_scaling");
  text["model_type"] = "qwen2_5_vl_text";
  text["layer_types"] = std::vector<std::string>(36, "full_attention");
  text["sliding_window"] = nullptr;
  text["rope_parameters"] = {
      {"mrope_section", {16, 24, 24}}, {"rope_theta", 1000000.0}, {"rope_type", "default"}, {"type", "default"}};
  json["text_config"] = text;
  json["tie_word_embeddings"] = false;  // as 4.5x left it
  return json;
}

std::string error_of(const Json& json) {
  try {
    Config::parse(json, "x/config.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Config, FlatLayoutOfTheHub) {
  const Config c = Config::parse(flat(), "x");
  EXPECT_EQ(c.layers, 36);
  EXPECT_EQ(c.hidden, 2048);
  EXPECT_EQ(c.intermediate, 11008);
  EXPECT_EQ(c.heads, 16);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim(), 128);
  EXPECT_EQ(c.vocab, 151936);
  EXPECT_EQ(c.max_positions, 128000);
  EXPECT_TRUE(c.tie_embeddings);
  EXPECT_EQ(c.rope_theta, 1e6);
  EXPECT_EQ(c.rms_eps, 1e-6);
  EXPECT_THAT(c.mrope_sections, testing::ElementsAre(16, 24, 24));
  EXPECT_THAT(c.eos_ids, testing::ElementsAre(151645));
  EXPECT_EQ(c.image_token, 151655);
  EXPECT_EQ(c.vision.depth, 32);
  EXPECT_EQ(c.vision.hidden, 1280);
  EXPECT_EQ(c.vision.head_dim(), 80);
  EXPECT_EQ(c.vision.patch_values(), 1176);
  EXPECT_EQ(c.vision.out_hidden, 2048);
  EXPECT_EQ(c.vision.tokens_per_second, 2);
}

TEST(Config, NestedLayoutIsTheSame) {
  EXPECT_EQ(Config::parse(nested(), "x").to_json(), Config::parse(flat(), "x").to_json());
}

TEST(Config, NestedTextConfigHidesTopLevelKeys) {
  Json json = nested();
  json["hidden_size"] = 1;
  EXPECT_EQ(Config::parse(json, "x").hidden, 2048);
}

TEST(Config, MissingKeysTakeTheDefaultsOfTheClass) {
  // Class defaults of transformers 5.17; its own default out_hidden_size does not fit its default hidden_size.
  const Config c = Config::parse({{"vision_config", {{"out_hidden_size", 8192}}}}, "x");
  EXPECT_EQ(c.to_json(), parse_json(R"({"model_type": "qwen2_5_vl", "num_hidden_layers": 80, "hidden_size": 8192,
    "intermediate_size": 29568, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": false, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "eos_token_id": [], "image_token_id": 151655,
    "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_config": {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
      "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "window_size": 112,
      "out_hidden_size": 8192, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 4.0}})",
                                    "expected"));
}

TEST(Config, NullsAndLists) {
  Json json = flat();
  json["eos_token_id"] = {151645, 151643};
  json["num_key_value_heads"] = nullptr;
  json["quantization_config"] = nullptr;
  json["head_dim"] = 128;
  json["vision_config"]["patch_size"] = {14, 14};
  json["vision_config"]["depth"] = 8;
  json["vision_config"].erase("fullatt_block_indexes");
  const Config c = Config::parse(json, "x");
  EXPECT_THAT(c.eos_ids, testing::ElementsAre(151645, 151643));
  EXPECT_EQ(c.kv_heads, 16);  // null: one for each head, as in the class
  EXPECT_EQ(c.vision.patch, 14);
  EXPECT_THAT(c.vision.full_attention_blocks, testing::ElementsAre(7));  // of the defaults, those that exist
}

struct Bad {
  const char* pointer;  // into the flat layout
  Json value;
  const char* message;
};

TEST(Config, RefusesWrongValuesByName) {
  const Bad table[] = {
      {"/hidden_size", "2048", "x/config.json: hidden_size: expected an integer from 1 to 65536, found \"2048\""},
      {"/hidden_size", 0, "hidden_size: expected an integer from 1 to 65536, found 0"},
      {"/hidden_size", 2048.0, "hidden_size: expected an integer"},
      {"/hidden_size", -2048, "hidden_size: expected an integer"},
      {"/hidden_size", 18446744073709551615u, "hidden_size: expected an integer"},
      {"/num_hidden_layers", 1001, "num_hidden_layers: expected an integer from 1 to 1000, found 1001"},
      {"/vocab_size", 5000000, "vocab_size: expected an integer from 1 to 4194304"},
      {"/intermediate_size", Json::array(), "intermediate_size: expected an integer"},
      {"/num_attention_heads", 15, "num_attention_heads: expected a divisor of hidden_size 2048, found 15"},
      {"/num_attention_heads", 2048, "num_attention_heads must be even, found 1"},
      {"/num_key_value_heads", 3, "num_key_value_heads: expected a divisor of num_attention_heads 16, found 3"},
      {"/num_key_value_heads", 0, "num_key_value_heads: expected an integer from 1"},
      {"/head_dim", 64, "head_dim: expected an integer from 128 to 128, found 64"},
      {"/rms_norm_eps", "small", "rms_norm_eps: expected a number"},
      {"/rms_norm_eps", -1e-6, "rms_norm_eps: expected a number from 0 to 1, found -1e-06"},
      {"/rope_theta", 0, "rope_theta: expected a number from"},
      {"/tie_word_embeddings", 1, "tie_word_embeddings: expected true or false, found 1"},
      {"/hidden_act", "gelu", "hidden_act: expected \"silu\", found \"gelu\""},
      {"/use_sliding_window", true, "use_sliding_window: expected false (not supported otherwise), found true"},
      {"/layer_types", {"sliding_attention"}, "layer_types: expected \"full_attention\" throughout"},
      {"/image_token_id", 151936, "image_token_id: expected an integer from 0 to 151935, found 151936"},
      {"/image_token_id", 151656, "image_token_id: expected four different ids"},
      {"/eos_token_id", {151645, 200000}, "eos_token_id: expected integers from 0 to 151935, found [151645,200000]"},
      {"/rope_scaling/mrope_section", {16, 24, 25}, "rope_scaling.mrope_section: expected three sections that sum to"},
      {"/rope_scaling/mrope_section", {32, 32}, "found [32,32]"},
      {"/rope_scaling/mrope_section", {-8, 48, 24}, "rope_scaling.mrope_section: expected integers from 0"},
      {"/rope_scaling/type", "yarn", "rope_scaling.type: expected \"mrope\" or \"default\" (scaled rope is not"},
      {"/rope_scaling/rope_type", "linear", "rope_scaling.rope_type: expected \"mrope\" or \"default\""},
      {"/rope_scaling/partial_rotary_factor", 0.5, "rope_scaling.partial_rotary_factor: expected a number from 1 to 1"},
      {"/rope_scaling", 3, "rope_scaling: expected a JSON object, found 3"},
      {"/vision_config", "none", "vision_config: expected a JSON object, found \"none\""},
      {"/text_config", 1, "text_config: expected a JSON object, found 1"},
      {"/vision_config/depth", 0, "vision_config.depth: expected an integer from 1 to 1000, found 0"},
      {"/vision_config/num_heads", 7, "vision_config.num_heads: expected a divisor of hidden_size 1280, found 7"},
      {"/vision_config/num_heads", 640, "vision_config.num_heads: hidden_size / num_heads must be a multiple of 4"},
      {"/vision_config/window_size", 100, "vision_config.window_size: expected a multiple of patch_size * spatial_"},
      {"/vision_config/patch_size", {14, 16}, "vision_config.patch_size: expected an integer, or equal integers"},
      {"/vision_config/patch_size", Json::array(), "vision_config.patch_size: expected an integer, or equal integers"},
      {"/vision_config/in_chans", 1, "vision_config.in_chans: expected an integer from 3 to 3, found 1"},
      {"/vision_config/in_channels", 4, "vision_config.in_channels: expected an integer from 3 to 3, found 4"},
      {"/vision_config/fullatt_block_indexes", {7, 32}, "fullatt_block_indexes: expected integers from 0 to 31"},
      {"/vision_config/out_hidden_size", 1024,
       "vision_config.out_hidden_size: expected the hidden_size of the text model, 2048, found 1024"},
      {"/vision_config/hidden_act", "relu", "vision_config.hidden_act: expected \"silu\""},
      {"/vision_config/tokens_per_second", 0, "vision_config.tokens_per_second: expected a number"},
      {"/quantization_config",
       {{"quant_method", "awq"}, {"bits", 4}},
       "quantization_config: quantised weights (method \"awq\") are not supported; use the BF16 checkpoint"},
      {"/quantization_config", Json::object(), "(method \"unknown\")"},
  };
  for (const Bad& bad : table) {
    Json json = flat();
    json[Json::json_pointer(bad.pointer)] = bad.value;
    const std::string error = error_of(json);
    EXPECT_THAT(error, HasSubstr("x/config.json: ")) << bad.pointer << " " << bad.value;
    EXPECT_THAT(error, HasSubstr(bad.message)) << bad.pointer << " " << bad.value;
  }
  EXPECT_THAT(error_of(Json::array()), HasSubstr("x/config.json: expected a JSON object, found []"));
}

TEST(Config, NestedErrorsNameTheirPath) {
  Json json = nested();
  json["text_config"]["rope_parameters"]["rope_theta"] = "big";
  EXPECT_THAT(error_of(json), HasSubstr("text_config.rope_parameters.rope_theta: expected a number"));
  json = nested();
  json["text_config"]["quantization_config"] = {{"quant_method", "gptq"}};
  EXPECT_THAT(error_of(json), HasSubstr("text_config.quantization_config: quantised weights (method \"gptq\")"));
}

TEST(Config, DefaultTokenOutsideASmallVocabulary) {
  Json json = flat();
  json["vocab_size"] = 1000;
  json.erase("image_token_id");
  EXPECT_THAT(error_of(json), HasSubstr("image_token_id: missing, and its default 151655 is outside vocab_size 1000"));
}

TEST(Config, PublishedShapes) {
  Json expected = Config::parse(flat(), "x").to_json();
  expected["eos_token_id"] = {151645, 151643};
  EXPECT_EQ(Config::published("qwen2.5-vl-3b").to_json(), expected);
  for (const char* name : {"qwen2.5-vl-7b", "qwen2.5-vl-32b", "qwen2.5-vl-72b"}) {
    const Json json = Config::published(name).to_json();
    EXPECT_EQ(Config::parse(json, name).to_json(), json) << name;
    EXPECT_EQ(Config::published(name).head_dim(), 128) << name;
    EXPECT_EQ(Config::published(name).vision.head_dim(), 80) << name;
  }
  EXPECT_EQ(Config::published("qwen2.5-vl-72b").vision.intermediate, 3456);
  try {
    Config::published("qwen3");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("\"qwen3\"; known: qwen2.5-vl-3b, qwen2.5-vl-7b, qwen2.5-vl-32b, qwen2.5-vl-72b"));
  }
}

}  // namespace
}  // namespace saccade::qwen2_5_vl
