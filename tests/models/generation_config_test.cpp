#include "models/generation_config.h"

#include <gmock/gmock.h>

#include <cmath>

#include "weights/safetensors_maker.h"

namespace saccade {
namespace {

using test::error_of;
using test::Folder;
using testing::ElementsAre;
using testing::HasSubstr;

GenerationDefaults parse(const Json& json) { return parse_generation_config(json, 151936, "g.json"); }

TEST(GenerationConfig, PublishedVariants) {
  const GenerationDefaults early = parse({{"bos_token_id", 151643},
                                          {"pad_token_id", 151643},
                                          {"do_sample", true},
                                          {"eos_token_id", {151645, 151643}},
                                          {"repetition_penalty", 1.05},
                                          {"temperature", 0.1},
                                          {"top_k", 1},
                                          {"top_p", 0.001}});
  EXPECT_THAT(early.eos_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(early.repetition_penalty, 1.05f);
  EXPECT_EQ(early.temperature, 0.1f);
  EXPECT_EQ(early.top_k, 1);
  EXPECT_EQ(early.top_p, 0.001f);

  const GenerationDefaults later =
      parse({{"do_sample", true}, {"eos_token_id", 151645}, {"repetition_penalty", 1.05}, {"temperature", 1e-6}});
  EXPECT_THAT(later.eos_ids, ElementsAre(151645));
  EXPECT_EQ(later.temperature, 1e-6f);
  EXPECT_EQ(later.top_k, 50);
  EXPECT_EQ(later.top_p, 1);
}

TEST(GenerationConfig, WithoutSamplingItIsGreedy) {
  for (const Json& json : {Json{{"do_sample", false}, {"temperature", 0.7}, {"top_k", 20}, {"top_p", 0.8}},
                           Json{{"temperature", 0.7}}, Json::object()}) {
    const GenerationDefaults g = parse(json);
    EXPECT_EQ(g.temperature, 0) << json;
    EXPECT_EQ(g.top_k, 0) << json;
    EXPECT_EQ(g.top_p, 1) << json;
    EXPECT_EQ(g.repetition_penalty, 1) << json;
    EXPECT_TRUE(g.eos_ids.empty()) << json;
  }
  EXPECT_EQ(parse({{"repetition_penalty", 1.05}}).repetition_penalty, 1.05f);
}

TEST(GenerationConfig, RepeatedEosCountsOnce) {
  EXPECT_THAT(parse({{"eos_token_id", {5, 6, 5}}}).eos_ids, ElementsAre(5, 6));
}

TEST(GenerationConfig, RefusesWrongValuesByName) {
  const std::pair<Json, const char*> table[] = {
      {Json::array(), "g.json: expected a JSON object, found []"},
      {{{"eos_token_id", 151936}}, "g.json: eos_token_id: expected integers from 0 to 151935, found 151936"},
      {{{"eos_token_id", {1, -1}}}, "eos_token_id: expected integers from 0 to 151935, found [1,-1]"},
      {{{"eos_token_id", "<|im_end|>"}}, "eos_token_id: expected integers"},
      {{{"temperature", -0.1}}, "temperature: expected a number from 0"},
      {{{"temperature", NAN}}, "temperature: expected a number from 0"},
      {{{"temperature", INFINITY}}, "temperature: expected a number from 0"},
      {{{"temperature", "hot"}}, "temperature: expected a number from 0"},
      {{{"top_k", -1}}, "top_k: expected an integer from 0"},
      {{{"top_k", 1.5}}, "top_k: expected an integer from 0"},
      {{{"top_p", 0}}, "top_p: expected a number"},
      {{{"top_p", 1.01}}, "top_p: expected a number"},
      {{{"repetition_penalty", 0}}, "repetition_penalty: expected a number"},
      {{{"repetition_penalty", NAN}}, "repetition_penalty: expected a number"},
      {{{"do_sample", "yes"}}, "do_sample: expected true or false"},
  };
  for (const auto& [json, message] : table)
    EXPECT_THAT(error_of([&, value = json] { parse(value); }), HasSubstr(message)) << json;
}

TEST(GenerationConfig, EosComesFromTheFirstFileThatNamesOne) {
  Folder folder;
  const TokenId token_id = [](std::string_view token) -> std::optional<int32_t> {
    if (token == "<|im_end|>") return 45;
    if (token == "<|far|>") return 1000;
    return std::nullopt;
  };
  const auto load = [&](const std::vector<int32_t>& config_eos) {
    return load_generation_config(folder.path(), config_eos, 100, token_id).eos_ids;
  };
  const auto load_error = [&] { return error_of([&] { load({}); }); };

  EXPECT_THAT(load({7}), ElementsAre(7));
  EXPECT_THAT(load_error(), testing::AllOf(HasSubstr(folder.path()), HasSubstr("no end of sequence")));
  folder.write("tokenizer_config.json", R"({"eos_token":"<|im_end|>"})");
  EXPECT_THAT(load({}), ElementsAre(45));
  folder.write("tokenizer_config.json", R"({"eos_token":{"__type":"AddedToken","content":"<|im_end|>"}})");
  EXPECT_THAT(load({}), ElementsAre(45));
  folder.write("tokenizer_config.json", R"({"eos_token":null})");
  EXPECT_THAT(load_error(), HasSubstr("tokenizer_config.json: eos_token: missing"));
  folder.write("tokenizer_config.json", R"({"eos_token":"<|none|>"})");
  EXPECT_THAT(load_error(), HasSubstr("eos_token: expected a token with an id below 100, found \"<|none|>\""));
  folder.write("tokenizer_config.json", R"({"eos_token":"<|far|>"})");
  EXPECT_THAT(load_error(), HasSubstr("eos_token: expected a token with an id below 100"));
  folder.write("generation_config.json", R"({"eos_token_id":[3,4]})");
  EXPECT_THAT(load({7}), ElementsAre(3, 4));
  folder.write("generation_config.json", R"({"eos_token_id":)");
  EXPECT_THAT(load_error(), HasSubstr("generation_config.json: not valid JSON"));
}

}  // namespace
}  // namespace saccade
