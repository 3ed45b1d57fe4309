#include <gmock/gmock.h>

#include <cstdio>
#include <fstream>

#include "text/text_test.h"
#include "text/tokenizer.h"

namespace saccade {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string refusal(const Json& file) {
  const std::string message = error_of([&] { Tokenizer::parse(file.dump(), "t.json"); });
  EXPECT_THAT(message, StartsWith("t.json"));
  return message;
}

// The base file with the value at `pointer` replaced.
Json with(const std::string& pointer, const Json& value) {
  Json file = base_tokenizer_json();
  file[Json::json_pointer(pointer)] = value;
  return file;
}

Json added(int id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

TEST(TokenizerJson, NamesTheKeyOfWhatItDoesNotSupport) {
  const auto expect = [](const std::string& pointer, const Json& value, const std::string& part) {
    EXPECT_THAT(refusal(with(pointer, value)), HasSubstr(part)) << pointer;
  };
  expect("/model/type", "WordPiece", "model.type: model \"WordPiece\" is not supported");
  expect("/model/dropout", 0.1, "model.dropout");
  expect("/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix");
  expect("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix");
  expect("/model/ignore_merges", 1, "model.ignore_merges: expected true or false, found a number");
  expect("/normalizer", {{"type", "NFKC"}}, "normalizer.type: normalizer \"NFKC\"");
  expect("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
         "normalizer.normalizers[0].type: normalizer \"Lowercase\"");
  expect("/pre_tokenizer", {{"type", "Metaspace"}}, "pre_tokenizer.type: pre-tokenizer \"Metaspace\"");
  expect("/pre_tokenizer", nullptr, "pre_tokenizer: missing");
  expect("/pre_tokenizer", {{"type", "Digits"}}, "no ByteLevel step");
  expect("/pre_tokenizer/pretokenizers/0", {{"type", "ByteLevel"}},
         "pretokenizers[1].type: pre-tokenizer \"ByteLevel\"");
  expect("/pre_tokenizer/pretokenizers/0/behavior", "Kept", "behavior: unknown behavior \"Kept\"");
  expect("/pre_tokenizer/pretokenizers/0/pattern", Json::object(), "pattern: expected Regex or String");
  expect("/pre_tokenizer/pretokenizers/0/pattern", {{"String", ""}}, "pattern.String: the pattern is empty");
  expect("/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "(?<=a)b"}}, "pretokenizers[0].pattern.Regex");
  expect("/decoder", {{"type", "WordPiece"}}, "decoder.type: decoder \"WordPiece\"");
  expect("/decoder", nullptr, "decoder: missing");
  expect("/added_tokens/0/single_word", true, "added_tokens[0].single_word");
}

TEST(TokenizerJson, RefusesMalformedFiles) {
  const auto expect = [](const std::string& pointer, const Json& value, const std::string& part) {
    EXPECT_THAT(refusal(with(pointer, value)), HasSubstr(part)) << pointer;
  };
  expect("/model", nullptr, "model: missing");
  expect("/model", 3, "model: expected an object, found a number");
  expect("/model/vocab", Json::array(), "model.vocab: expected an object, found an array");
  expect("/model/vocab", Json::object(), "no token for byte 0x00");
  expect("/model/vocab/he", -1, "model.vocab[\"he\"]: expected an id between 0 and 1048575");
  expect("/model/vocab/he", 1048576, "model.vocab[\"he\"]: expected an id");
  expect("/model/vocab/he", 1e300, "model.vocab[\"he\"]: expected an id");
  expect("/model/vocab/he", "1", "model.vocab[\"he\"]: expected an id");
  expect("/model/vocab/he", 0, "id 0 belongs to ");
  expect("/model/vocab/" + std::string(5000, 'x'), 4000, "a token of 5000 bytes");
  expect("/model/merges", "a b", "model.merges: expected an array, found a string");
  expect("/model/merges/3", 7, "model.merges[3]: expected a string or a pair of strings");
  expect("/model/merges/3", Json::array({"a"}), "model.merges[3]");
  expect("/model/merges/3", Json::array({"a", "b", "c"}), "model.merges[3]");
  expect("/model/merges/3", "a", "model.merges[3]: expected two tokens with one space between");
  expect("/model/merges/3", "a b c", "model.merges[3]");
  expect("/model/merges/3", Json::array({"a", "qqq"}), "model.merges[3]: token \"qqq\" is not in t.json: model.vocab");
  expect("/model/merges/3", Json::array({"a", "\u0100"}), "token \"a\u0100\" is not in");
  expect("/added_tokens", "x", "added_tokens: expected an array");
  expect("/added_tokens/1/content", nullptr, "added_tokens[1].content: missing");
  expect("/added_tokens/1/content", "", "added_tokens[1].content: 0 bytes");
  expect("/added_tokens/1/id", 700, "added_tokens[1].id: expected 601 for \"<|im_start|>\", found 700");
  expect("/added_tokens/1/id", 5, "added_tokens[1].id");
  expect("/added_tokens/1", added(5, "he"), "added_tokens[1].id: expected ");
}

TEST(TokenizerJson, RefusesDuplicateTokens) {
  std::string text = base_tokenizer_json().dump();
  text.insert(text.find("\"vocab\":{") + 9, "\"!\":900,");
  EXPECT_THAT(error_of([&] { Tokenizer::parse(text, "t.json"); }), HasSubstr("the token occurs twice"));
}

TEST(TokenizerJson, RefusesSpecialTokensThatTextCouldSpell) {
  Json file = base_tokenizer_json();
  file["added_tokens"].push_back(added(file["model"]["vocab"]["he"], "he"));
  EXPECT_THAT(refusal(file), HasSubstr("special token \"he\" can be made by merges"));
  file["added_tokens"].back()["special"] = false;
  EXPECT_NO_THROW(Tokenizer::parse(file.dump(), "t.json"));
}

TEST(TokenizerJson, IgnoreMergesNeverYieldsASpecialToken) {
  Json file = base_tokenizer_json();
  file["model"]["ignore_merges"] = true;
  file["model"]["vocab"]["qqq"] = 600;
  file["added_tokens"] = Json::array({added(600, "qqq")});
  const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "t.json");
  EXPECT_EQ(tokenizer.encode_with_special("qqq"), std::vector<int32_t>{600});
  EXPECT_EQ(tokenizer.encode("qqq"), std::vector<int32_t>(3, *tokenizer.token_id("q")));
}

TEST(TokenizerJson, RefusesWhatIsNotJson) {
  const std::string whole = base_tokenizer_json().dump();
  for (size_t size = 0; size < whole.size(); size += 97) {
    error_of([&] { Tokenizer::parse(std::string_view(whole).substr(0, size), "t.json"); });
  }
  for (const std::string& text :
       {std::string("[]"), std::string("null"), std::string("3"), std::string("\"\xFF\""),
        std::string("{\"model\":\"\xC0\"}"), std::string(100000, '['), std::string("{\"model\":\"\\ud800\"}")}) {
    EXPECT_THAT(error_of([&] { Tokenizer::parse(text, "t.json"); }), StartsWith("t.json"));
  }
  std::string deep = base_tokenizer_json().dump();
  deep.insert(1, "\"extra\":" + std::string(200, '[') + std::string(200, ']') + ",");
  EXPECT_THAT(error_of([&] { Tokenizer::parse(deep, "t.json"); }), StartsWith("t.json: not valid JSON"));
}

TEST(TokenizerJson, AcceptsWhatChangesNothing) {
  Json file = base_tokenizer_json();
  const auto expected = Tokenizer::parse(file.dump(), "t.json").encode("It's the caf\u00e9");
  file["truncation"] = {{"max_length", 2}};
  file["post_processor"] = {{"type", "TemplateProcessing"}};
  file["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteLevel"}}}}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  file["model"].erase("type");
  file["model"]["unk_token"] = "?";
  EXPECT_EQ(Tokenizer::parse(file.dump(), "t.json").encode("It's the caf\u00e9"), expected);
}

TEST(TokenizerJson, LoadsFromAPathAndNamesIt) {
  EXPECT_EQ(Tokenizer::load(std::string(SACCADE_SOURCE_DIR) + "/tests/data/text/tokenizer.json").vocab_size(), 605);
  EXPECT_THAT(error_of([] { Tokenizer::load("/no/such/tokenizer.json"); }), HasSubstr("/no/such/tokenizer.json"));
}

}  // namespace
}  // namespace saccade
