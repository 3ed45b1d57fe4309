#include <gmock/gmock.h>

#include "base/error.h"
#include "models/deepseek_vl2/config.h"

namespace saccade::deepseek_vl2 {
namespace {

using testing::HasSubstr;

// config.json of the three releases, with the keys that they omit.
Json hub(const std::string& name) {
  return read_json_file(std::string(SACCADE_SOURCE_DIR) + "/tests/data/configs/" + name + ".json");
}

std::string error_of(const Json& json) {
  try {
    Config::parse(json, "x/config.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(DeepseekVl2Config, PublishedShapesAreThoseOfTheHub) {
  for (const char* name : {"deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2-base"}) {
    const Json json = Config::published(name).to_json();
    EXPECT_EQ(Config::parse(hub(name), name).to_json(), json);
    EXPECT_EQ(Config::parse(json, name).to_json(), json);
  }
  EXPECT_THAT([] { Config::published("deepseek-vl2"); },
              testing::ThrowsMessage<Error>(
                  HasSubstr("\"deepseek-vl2\"; known: deepseek-vl2-tiny, deepseek-vl2-small, deepseek-vl2-base")));
}

TEST(DeepseekVl2Config, Tiny) {
  const Config c = Config::parse(hub("deepseek-vl2-tiny"), "x");
  EXPECT_FALSE(c.mla);
  EXPECT_EQ(c.layers, 12);
  EXPECT_EQ(c.hidden, 1280);
  EXPECT_EQ(c.ffn, 6848);
  EXPECT_EQ(c.heads, 10);
  EXPECT_EQ(c.kv_heads, 10);
  EXPECT_EQ(c.head_dim(), 128);
  EXPECT_EQ(c.value_dim(), 128);
  EXPECT_EQ(c.kv_values(), 2560);
  EXPECT_EQ(c.vocab, 129280);
  EXPECT_EQ(c.bos, 0);
  EXPECT_EQ(c.eos, 1);
  EXPECT_EQ(c.max_positions, 4096);
  EXPECT_EQ(c.moe_ffn, 896);
  EXPECT_FALSE(c.moe(0));
  EXPECT_TRUE(c.moe(1));
}

TEST(DeepseekVl2Config, SmallTakesVocabularyAndTokensFromTheClass) {
  const Config c = Config::parse(hub("deepseek-vl2-small"), "x");
  EXPECT_TRUE(c.mla);
  EXPECT_EQ(c.vocab, 102400);
  EXPECT_EQ(c.bos, 100000);
  EXPECT_EQ(c.eos, 100001);
  EXPECT_EQ(c.head_dim(), 192);
  EXPECT_EQ(c.value_dim(), 128);
  EXPECT_EQ(c.kv_values(), 576);
  EXPECT_EQ(c.experts, 64);
  EXPECT_EQ(c.shared_experts, 2);
  EXPECT_EQ(c.routing.top_k, 6);
  EXPECT_EQ(c.routing.score, ops::Routing::Score::kSoftmax);
  EXPECT_FALSE(c.routing.normalise);
  EXPECT_EQ(c.routing.scale, 1);
  EXPECT_FALSE(c.routing_bias);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.rms_eps, 1e-6);
}

TEST(DeepseekVl2Config, BaseTakesLayersHeadsAndLatentsFromTheClass) {
  const Config c = Config::parse(hub("deepseek-vl2-base"), "x");
  EXPECT_TRUE(c.mla);
  EXPECT_EQ(c.layers, 30);
  EXPECT_EQ(c.heads, 32);
  EXPECT_EQ(c.latent, 512);
  EXPECT_EQ(c.nope, 128);
  EXPECT_EQ(c.rope, 64);
  EXPECT_EQ(c.value, 128);
  EXPECT_EQ(c.experts, 72);
  EXPECT_EQ(c.moe_ffn, 1536);
  EXPECT_EQ(c.routing.score, ops::Routing::Score::kSigmoid);
  EXPECT_TRUE(c.routing.normalise);
  EXPECT_EQ(c.routing.scale, 2);
  EXPECT_TRUE(c.routing_bias);
}

TEST(DeepseekVl2Config, VisionAndTiles) {
  const Config c = Config::parse(hub("deepseek-vl2-small"), "x");
  EXPECT_EQ(c.vision.layers, 27);
  EXPECT_EQ(c.vision.hidden, 1152);
  EXPECT_EQ(c.vision.heads, 16);        // omitted
  EXPECT_EQ(c.vision.image_size, 384);  // omitted
  EXPECT_EQ(c.vision.head_dim(), 72);
  EXPECT_EQ(c.vision.ffn(), 4304);
  EXPECT_EQ(c.vision.side(), 27);
  EXPECT_EQ(c.vision.patches(), 729);
  EXPECT_EQ(c.vision.patch_values(), 588);
  EXPECT_EQ(c.downsample, 2);
  EXPECT_EQ(c.tile_side(), 14);
  ASSERT_EQ(c.resolutions.size(), 23u);
  EXPECT_EQ(c.resolutions[1], (Size{384, 768}));
  EXPECT_EQ(c.resolutions[2], (Size{768, 384}));
}

TEST(DeepseekVl2Config, MissingKeysTakeTheDefaultsOfTheClasses) {
  // q_lora_rank and tile_tag have defaults that are not computed. The widths of the projector follow the other two.
  const Json least = {{"tile_tag", "2D"}, {"language_config", {{"q_lora_rank", nullptr}}}};
  const Json all = parse_json(R"({"model_type": "deepseek_vl_v2", "tile_tag": "2D", "global_view_pos": "head",
    "candidate_resolutions": [[384, 384]],
    "language_config": {"model_type": "deepseek_v2", "num_hidden_layers": 30, "hidden_size": 4096,
      "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 102400,
      "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-06, "bos_token_id": 100000,
      "eos_token_id": 100001, "use_mla": true, "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128},
    "vision_config": {"layers": 24, "width": 1024, "heads": 16, "patch_size": 16, "image_size": 384, "mlp_ratio": 4.0},
    "projector_config": {"projector_type": "downsample_mlp_gelu", "input_dim": 1024, "n_embed": 4096,
      "downsample_ratio": 2}})",
                              "all");
  const Config c = Config::parse(least, "x");
  EXPECT_EQ(c.to_json(), all);
  EXPECT_FALSE(c.moe(0));
  EXPECT_FALSE(c.moe(5));
}

TEST(DeepseekVl2Config, MissingKeysWhoseDefaultIsNotComputed) {
  Json json = hub("deepseek-vl2-small");
  json["language_config"].erase("q_lora_rank");
  EXPECT_THAT(error_of(json), HasSubstr("x/config.json: language_config.q_lora_rank: missing"));
  json = hub("deepseek-vl2-tiny");
  json["language_config"].erase("q_lora_rank");  // plain attention has none
  EXPECT_EQ(error_of(json), "");
  json = hub("deepseek-vl2-small");
  json["language_config"].erase("num_experts_per_tok");
  EXPECT_THAT(error_of(json), HasSubstr("language_config.num_experts_per_tok: missing"));
  json = hub("deepseek-vl2-small");
  json["language_config"].erase("topk_method");
  EXPECT_THAT(error_of(json), HasSubstr("language_config.topk_method: missing"));
  json = hub("deepseek-vl2-small");
  json.erase("tile_tag");
  EXPECT_THAT(error_of(json), HasSubstr("x/config.json: tile_tag: expected \"2D\""));
  json = hub("deepseek-vl2-small");
  json["language_config"]["vocab_size"] = 1000;
  EXPECT_THAT(error_of(json),
              HasSubstr("language_config.bos_token_id: missing, and its default 100000 is outside vocab_size 1000"));
}

TEST(DeepseekVl2Config, GroupedQueriesAndNulls) {
  Json json = hub("deepseek-vl2-tiny");
  Json& language = json["language_config"];
  language["num_key_value_heads"] = 5;
  EXPECT_EQ(Config::parse(json, "x").kv_values(), 1280);
  language["num_key_value_heads"] = nullptr;
  EXPECT_EQ(Config::parse(json, "x").kv_heads, 10);
  language["n_group"] = language["topk_group"] = language["n_shared_experts"] = nullptr;
  language["rope_scaling"] = language["attention_bias"] = json["quantization_config"] = nullptr;
  EXPECT_EQ(Config::parse(json, "x").shared_experts, 0);
  language["norm_topk_prob"] = true;
  language["num_experts_per_tok"] = 1;
  EXPECT_FALSE(Config::parse(json, "x").routing.normalise);  // one expert is never normalised
  language["moe_layer_freq"] = 2;
  const Config c = Config::parse(json, "x");
  EXPECT_FALSE(c.moe(1));
  EXPECT_TRUE(c.moe(2));
}

struct Bad {
  const char* pointer;  // into small
  Json value;
  const char* message;
};

TEST(DeepseekVl2Config, RefusesWrongValuesByName) {
  const Bad table[] = {
      {"/language_config/hidden_size", "2048", "language_config.hidden_size: expected an integer from 1 to 65536"},
      {"/language_config/hidden_size", 0, "language_config.hidden_size: expected an integer from 1 to 65536, found 0"},
      {"/language_config/hidden_size", -5, "language_config.hidden_size: expected an integer"},
      {"/language_config/hidden_size", 18446744073709551615u, "language_config.hidden_size: expected an integer"},
      {"/language_config/num_hidden_layers", 1001, "num_hidden_layers: expected an integer from 1 to 1000, found 1001"},
      {"/language_config/intermediate_size", Json::array(), "intermediate_size: expected an integer"},
      {"/language_config/vocab_size", 5000000, "vocab_size: expected an integer from 1 to 4194304"},
      {"/language_config/max_position_embeddings", 0, "max_position_embeddings: expected an integer from 1"},
      {"/language_config/num_attention_heads", 5000, "num_attention_heads: expected an integer from 1 to 4096"},
      {"/language_config/q_lora_rank", 1536, "language_config.q_lora_rank: expected null (not supported otherwise)"},
      {"/language_config/kv_lora_rank", 0, "kv_lora_rank: expected an integer from 1"},
      {"/language_config/qk_nope_head_dim", -1, "qk_nope_head_dim: expected an integer from 1"},
      {"/language_config/qk_rope_head_dim", 63, "qk_rope_head_dim: expected an even number, found 63"},
      {"/language_config/v_head_dim", 70000, "v_head_dim: expected an integer from 1"},
      {"/language_config/use_mla", 1, "use_mla: expected true or false, found 1"},
      {"/language_config/attention_bias", true, "attention_bias: expected false (not supported otherwise), found true"},
      {"/language_config/tie_word_embeddings", true, "tie_word_embeddings: expected false"},
      {"/language_config/hidden_act", "gelu",
       "hidden_act: expected \"silu\" (not supported otherwise), found \"gelu\""},
      {"/language_config/rope_scaling", {{"type", "yarn"}}, "rope_scaling: expected null (not supported otherwise)"},
      {"/language_config/rope_theta", 0, "rope_theta: expected a number"},
      {"/language_config/rms_norm_eps", -1e-6, "rms_norm_eps: expected a number from 0 to 1, found -1e-06"},
      {"/language_config/n_routed_experts", 0, "n_routed_experts: expected an integer from 1 to 4096, found 0"},
      {"/language_config/n_shared_experts", -1, "n_shared_experts: expected an integer from 0"},
      {"/language_config/n_shared_experts", 4096, "n_shared_experts: expected at most 1048576 in width together"},
      {"/language_config/moe_intermediate_size", 0, "moe_intermediate_size: expected an integer from 1"},
      {"/language_config/num_experts_per_tok", 65, "num_experts_per_tok: expected an integer from 1 to 64, found 65"},
      {"/language_config/first_k_dense_replace", -1, "first_k_dense_replace: expected an integer from 0"},
      {"/language_config/moe_layer_freq", 0, "moe_layer_freq: expected an integer from 1"},
      {"/language_config/n_group", 8, "n_group: expected an integer from 1 to 1, found 8"},
      {"/language_config/topk_group", 2, "topk_group: expected an integer from 1 to 1, found 2"},
      {"/language_config/topk_method", "group_limited_greedy", "topk_method: expected \"greedy\" or \"noaux_tc\""},
      {"/language_config/topk_method", "gready", "topk_method: expected \"greedy\" or \"noaux_tc\""},
      {"/language_config/scoring_func", "relu", "scoring_func: expected \"softmax\" or \"sigmoid\", found \"relu\""},
      {"/language_config/norm_topk_prob", "no", "norm_topk_prob: expected true or false"},
      {"/language_config/routed_scaling_factor", 1e300, "routed_scaling_factor: expected a number"},
      {"/language_config/bos_token_id", 102400, "bos_token_id: expected an integer from 0 to 102399, found 102400"},
      {"/language_config/eos_token_id", -1, "eos_token_id: expected an integer from 0"},
      {"/language_config/quantization_config", {{"bits", 4}}, "language_config.quantization_config: expected null"},
      {"/language_config", 3, "language_config: expected a JSON object, found 3"},
      {"/quantization_config", {{"bits", 4}}, "x/config.json: quantization_config: expected null"},
      {"/tile_tag", "1D", "tile_tag: expected \"2D\" (not supported otherwise), found \"1D\""},
      {"/global_view_pos", "tail", "global_view_pos: expected \"head\" (not supported otherwise), found \"tail\""},
      {"/candidate_resolutions", Json::array(), "candidate_resolutions: expected a list of [width, height], found []"},
      {"/candidate_resolutions", 384, "candidate_resolutions: expected a list of [width, height], found 384"},
      {"/candidate_resolutions/0", 384, "candidate_resolutions: expected [width, height], multiples of image_size 384"},
      {"/candidate_resolutions/0", {384, 383}, "candidate_resolutions: expected [width, height], multiples of"},
      {"/candidate_resolutions/0", {384, 0}, "candidate_resolutions: expected [width, height], multiples of"},
      {"/candidate_resolutions/0", {384, -384}, "candidate_resolutions: expected [width, height], multiples of"},
      {"/candidate_resolutions/0", {384, 384, 384}, "candidate_resolutions: expected [width, height], multiples of"},
      {"/candidate_resolutions/0", {3456, 3456}, "with at most 64 tiles, found [3456,3456]"},
      {"/candidate_resolutions/0", {384, int64_t{384} << 50}, "with at most 64 tiles, found [384,"},
      {"/candidate_resolutions/0", {768, 384}, "candidate_resolutions: expected image_size 384 as the first width"},
      {"/vision_config/layers", 0, "vision_config.layers: expected an integer from 1"},
      {"/vision_config/width", 65537, "vision_config.width: expected an integer from 1 to 65536"},
      {"/vision_config/heads", 7, "vision_config.heads: expected a divisor of width 1152 with an even quotient"},
      {"/vision_config/patch_size", 0, "vision_config.patch_size: expected an integer from 1"},
      {"/vision_config/image_size", 13, "vision_config.image_size: expected an integer from 14"},
      {"/vision_config/mlp_ratio", 0, "vision_config.mlp_ratio: expected a number"},
      {"/vision_config/class_token", true, "vision_config.class_token: expected false"},
      {"/vision_config/ignore_head", false, "vision_config.ignore_head: expected true"},
      {"/vision_config/global_pool", "avg", "vision_config.global_pool: expected \"map\""},
      {"/vision_config", "none", "vision_config: expected a JSON object, found \"none\""},
      {"/projector_config/projector_type", "linear",
       "projector_config.projector_type: expected \"downsample_mlp_gelu\""},
      {"/projector_config/input_dim", 1024,
       "projector_config.input_dim: expected an integer from 1152 to 1152, found 1024"},
      {"/projector_config/n_embed", 1280,
       "projector_config.n_embed: expected an integer from 2048 to 2048, found 1280"},
      {"/projector_config/depth", 3, "projector_config.depth: expected an integer from 2 to 2, found 3"},
      {"/projector_config/mlp_ratio", 2, "projector_config.mlp_ratio: expected an integer from 1 to 1, found 2"},
      {"/projector_config/token_pooling", true, "projector_config.token_pooling: expected false"},
      {"/projector_config/downsample_ratio", 0, "projector_config.downsample_ratio: expected an integer from 1 to 16"},
  };
  for (const Bad& bad : table) {
    Json json = hub("deepseek-vl2-small");
    json[Json::json_pointer(bad.pointer)] = bad.value;
    const std::string error = error_of(json);
    EXPECT_THAT(error, HasSubstr("x/config.json: ")) << bad.pointer << " " << bad.value;
    EXPECT_THAT(error, HasSubstr(bad.message)) << bad.pointer << " " << bad.value;
  }
  EXPECT_THAT(error_of(Json::array()), HasSubstr("x/config.json: expected a JSON object, found []"));
}

TEST(DeepseekVl2Config, RefusesWrongHeadsOfPlainAttention) {
  Json json = hub("deepseek-vl2-tiny");
  json["language_config"]["num_key_value_heads"] = 3;
  EXPECT_THAT(error_of(json), HasSubstr("num_key_value_heads: expected a divisor of num_attention_heads 10, found 3"));
  json = hub("deepseek-vl2-tiny");
  json["language_config"]["num_attention_heads"] = json["language_config"]["num_key_value_heads"] = 7;
  EXPECT_THAT(error_of(json), HasSubstr("num_attention_heads: expected a divisor of hidden_size 1280 with an even"));
  json["language_config"]["num_attention_heads"] = json["language_config"]["num_key_value_heads"] = 256;
  EXPECT_THAT(error_of(json), HasSubstr("num_attention_heads: expected a divisor of hidden_size 1280 with an even"));
}

}  // namespace
}  // namespace saccade::deepseek_vl2
