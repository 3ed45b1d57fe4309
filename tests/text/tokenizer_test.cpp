#include "text/tokenizer.h"

#include <gmock/gmock.h>

#include <set>
#include <thread>

#include "text/synthetic_tokenizer.h"
#include "text/text_test.h"
#include "text/unicode.h"

namespace saccade {
namespace {

using ::testing::HasSubstr;

Tokenizer base_tokenizer() { return Tokenizer::parse(base_tokenizer_json().dump(), "base"); }

// tests/data/text/goldens.json, written by tools/reference/make_text_goldens.py.
TEST(Tokenizer, EqualsTheReference) {
  const Json base = base_tokenizer_json();
  int cases = 0;
  for (const Json& variant : read_json_file(std::string(SACCADE_SOURCE_DIR) + "/tests/data/text/goldens.json")) {
    const auto name = variant["name"].get<std::string>();
    Json file = base;
    for (const auto& [key, value] : variant["replace"].items()) {
      if (key == "model") {
        file[key].update(value);
      } else {
        file[key] = value;
      }
    }
    const Tokenizer tokenizer = Tokenizer::parse(file.dump(), name);
    for (const Json& item : variant["cases"]) {
      const auto text = item[0].get<std::string>();
      SCOPED_TRACE(name + ": " + item[0].dump(-1, ' ', true));
      const auto has = [&](size_t i) { return item.size() > i && !item[i].is_null(); };
      const auto ordinary = item[1].get<std::vector<int32_t>>();
      const auto special = has(2) ? item[2].get<std::vector<int32_t>>() : ordinary;
      const auto decoded = has(3) ? item[3].get<std::string>() : text;
      const auto skipped = has(4) ? item[4].get<std::string>() : decoded;
      EXPECT_EQ(tokenizer.encode(text), ordinary);
      EXPECT_EQ(tokenizer.encode_with_special(text), special);
      EXPECT_EQ(tokenizer.decode(special, false), decoded);
      EXPECT_EQ(tokenizer.decode(special, true), skipped);
      ++cases;
    }
  }
  EXPECT_GT(cases, 500);
}

TEST(Tokenizer, UserTextNeverBecomesAnAddedToken) {
  const Tokenizer tokenizer = base_tokenizer();
  const std::string text = "<|im_start|>system\n<|image_pad|><tool_call><|im_end|><|endoftext|>";
  for (const int32_t id : tokenizer.encode(text)) EXPECT_LT(id, *tokenizer.token_id("<|endoftext|>"));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

TEST(Tokenizer, PartsAreCutIntoWordsAsOneString) {
  const Tokenizer tokenizer = base_tokenizer();
  const std::vector<Tokenizer::Part> parts = {
      {"<|im_start|>user\n", true}, {"\n it", false}, {"alian<|im_", false}, {"end|>", false}, {"<|im_end|>", true}};
  std::vector<int32_t> expected = {*tokenizer.token_id("<|im_start|>")};
  const auto middle = tokenizer.encode("user\n\n italian<|im_end|>");
  expected.insert(expected.end(), middle.begin(), middle.end());
  expected.push_back(*tokenizer.token_id("<|im_end|>"));
  EXPECT_EQ(tokenizer.encode_parts(parts), expected);
  // A token may not straddle two parts either.
  EXPECT_EQ(tokenizer.encode_parts({{{"<|im_", true}, {"end|>", true}}}), tokenizer.encode("<|im_end|>"));
}

TEST(Tokenizer, DescribesItsTokens) {
  const Tokenizer tokenizer = base_tokenizer();
  const int32_t end = *tokenizer.token_id("<|im_end|>"), call = *tokenizer.token_id("<tool_call>");
  EXPECT_EQ(tokenizer.vocab_size(), 605);
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_FALSE(tokenizer.is_special(call));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(1 << 30));
  EXPECT_EQ(tokenizer.token_bytes(end), "<|im_end|>");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.token_id("\u0120")), " ");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.token_id("\u00C3")), "\xC3");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(605), "");
  EXPECT_EQ(tokenizer.token_id("<|no_such|>"), std::nullopt);
}

// Ids as tokenizers 0.22 gives them for add_special_tokens().
TEST(Tokenizer, AddsSpecialTokensBehindTheOthers) {
  const Tokenizer base = base_tokenizer();
  const std::string_view tokens[] = {"<pad>", "<|im_end|>", "<tool_call>", "<image>", "<pad>"};
  const Tokenizer more = base.with_added(tokens);
  EXPECT_EQ(more.token_id("<pad>"), 605);
  EXPECT_EQ(more.token_id("<|im_end|>"), 602);
  EXPECT_EQ(more.token_id("<tool_call>"), 604);
  EXPECT_EQ(more.token_id("<image>"), 606);
  EXPECT_EQ(more.vocab_size(), 607);
  for (const std::string_view token : tokens) EXPECT_TRUE(more.is_special(*more.token_id(token))) << token;
  EXPECT_EQ(more.encode_with_special("a<pad> b<tool_call>"), (std::vector<int32_t>{64, 605, 357, 604}));
  EXPECT_EQ(more.decode({64, 605, 604}), "a");
  for (const int32_t id : more.encode("<pad><image>")) EXPECT_LT(id, 600);

  EXPECT_EQ(base.vocab_size(), 605);  // the original is as it was
  EXPECT_FALSE(base.is_special(604));
  EXPECT_EQ(base.token_id("<pad>"), std::nullopt);
}

TEST(Tokenizer, AddedIdsCountTokensEvenWhereIdsAreMissing) {
  Json file = base_tokenizer_json();
  file["added_tokens"] = Json::array();
  file["model"]["vocab"]["<|x|>"] = 605;
  const Tokenizer sparse = Tokenizer::parse(file.dump(), "sparse").with_added({{"<a>", "<|x|>", "<b>"}});
  EXPECT_EQ(sparse.token_id("<a>"), 601);
  EXPECT_EQ(sparse.token_id("<|x|>"), 605);
  EXPECT_EQ(sparse.token_id("<b>"), 602);
  EXPECT_THAT(error_of([&] {
                sparse.with_added({{"<c>", "<d>", "<e>"}});
              }),
              HasSubstr("no id is free for \"<e>\", the next would be 605"));
}

TEST(Tokenizer, RefusesToAddWhatTextCouldSpell) {
  const Tokenizer tokenizer = base_tokenizer();
  EXPECT_THAT(error_of([&] { tokenizer.with_added({{"a"}}); }), HasSubstr("special token \"a\" can be made by merges"));
  EXPECT_THAT(error_of([&] { tokenizer.with_added({{""}}); }), HasSubstr("0 bytes, expected 1 to 512"));
}

TEST(Tokenizer, ShowsChosenSpecialTokens) {
  const Tokenizer base = base_tokenizer();
  const Tokenizer tokenizer = base.showing({{602}}).with_added({{"<pad>"}});
  EXPECT_EQ(tokenizer.decode({64, 601, 602, 605}), "a<|im_end|>");
  EXPECT_EQ(tokenizer.decode({64, 601, 602, 605}, false), "a<|im_start|><|im_end|><pad>");
  EXPECT_EQ(base.decode({64, 601, 602}), "a");
  EXPECT_TRUE(tokenizer.is_special(602));
  EXPECT_FALSE(tokenizer.is_hidden(602));
  EXPECT_TRUE(tokenizer.is_hidden(601));
  for (const int32_t id : tokenizer.encode("<|im_end|>")) EXPECT_LT(id, 600);
  Detokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(601), "");
  EXPECT_EQ(stream.push(602), "<|im_end|>");
  const Tokenizer both = tokenizer.showing({{601}});
  EXPECT_EQ(both.decode({601, 602, 605}), "<|im_start|><|im_end|>");
}

TEST(SyntheticTokenizer, HasBytesAndTheSpecialTokensAsked) {
  const std::pair<std::string_view, int32_t> special[] = {{"<a>", 300}, {"<b>", 302}};
  const Tokenizer tokenizer = synthetic_tokenizer(special);
  EXPECT_EQ(tokenizer.vocab_size(), 303);
  std::string all;
  for (int byte = 0; byte < 128; ++byte) all += static_cast<char>(byte);
  const auto ids = tokenizer.encode(all);
  for (int32_t byte = 0; byte < 128; ++byte) EXPECT_EQ(ids.at(static_cast<size_t>(byte)), byte);
  EXPECT_EQ(tokenizer.encode("\u00E9"), (std::vector<int32_t>{0xC3, 0xA9}));
  EXPECT_EQ(tokenizer.encode_with_special("x<a><b>"), (std::vector<int32_t>{'x', 300, 302}));
  EXPECT_EQ(tokenizer.encode("<a>[256]"), (std::vector<int32_t>{'<', 'a', '>', '[', '2', '5', '6', ']'}));
  EXPECT_TRUE(tokenizer.is_special(300));
  EXPECT_FALSE(tokenizer.is_special(301));
  EXPECT_EQ(tokenizer.token_bytes(301), "[301]");
}

TEST(Tokenizer, InvalidUtf8IsReplacedByMaximalParts) {
  const Tokenizer tokenizer = base_tokenizer();
  const auto round = [&](std::string_view text) { return tokenizer.decode(tokenizer.encode(text)); };
  EXPECT_EQ(round("a\xFFz"), "a\uFFFDz");
  EXPECT_EQ(round("\xE2\x82z"), "\uFFFDz");                  // cut short: one
  EXPECT_EQ(round("\xF0\x80\x80z"), "\uFFFD\uFFFD\uFFFDz");  // 80 cannot follow F0: one each
  EXPECT_EQ(round("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");    // a surrogate
  EXPECT_EQ(round("\xC0\xAF\xF5"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(round("\xF0\x9F\x98"), "\uFFFD");
  EXPECT_EQ(tokenizer.encode("x\xE2\x82"), tokenizer.encode("x\uFFFD"));
}

TEST(Tokenizer, LongRunsStayWhole) {
  const Tokenizer tokenizer = base_tokenizer();
  for (const std::string_view unit : {" ", "a", "\n", "1", ".", "\u0301", "ab", "\t ", "' "}) {
    std::string text;
    while (text.size() < 200000) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text + "x")), text + "x");
  }
}

TEST(Tokenizer, SeveralTokenizersAndThreadsDoNotDisturbEachOther) {
  const Tokenizer one = base_tokenizer();
  Json file = base_tokenizer_json();
  file["model"]["merges"] = Json::array();
  const Tokenizer other = Tokenizer::parse(file.dump(), "other");
  const auto expected = one.encode("the quick brown fox");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(one.encode("the quick brown fox"), expected);
        EXPECT_EQ(other.encode("the quick brown fox").size(), 19u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Tokenizer, RefusesTextBeyondItsLimit) {
  // Never read: the size alone decides.
  const std::string_view huge("x", (size_t{1} << 30) + 1);
  EXPECT_THAT(error_of([&] { base_tokenizer().encode(huge); }), HasSubstr("1073741824 bytes"));
}

TEST(Detokenizer, EqualsDecodeHoweverTheBytesAreCut) {
  const Tokenizer tokenizer = base_tokenizer();
  std::vector<int32_t> bytes(256);
  for (int b = 0; b < 256; ++b) {
    std::string token;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      if (tokenizer.token_bytes(id) == std::string(1, static_cast<char>(b))) bytes[static_cast<size_t>(b)] = id;
    }
  }
  // Every sequence of four bytes out of those where UTF-8 changes its mind.
  const std::vector<int> edges = {0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1,
                                  0xC2, 0xE0, 0xE1, 0xED, 0xF0, 0xF4, 0xF5};
  const size_t n = edges.size();
  for (size_t i = 0; i < n * n * n * n; ++i) {
    std::vector<int32_t> ids;
    for (size_t k = 0, rest = i; k < 4; ++k, rest /= n) ids.push_back(bytes[static_cast<size_t>(edges[rest % n])]);
    Detokenizer stream(tokenizer);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      ASSERT_TRUE(text::is_valid_utf8(piece));
      text += piece;
    }
    text += stream.finish();
    ASSERT_EQ(text, tokenizer.decode(ids)) << i;
  }
}

TEST(Detokenizer, HoldsBackPartsAndSkipsSpecials) {
  const Tokenizer tokenizer = base_tokenizer();
  const auto id = [&](std::string_view token) { return *tokenizer.token_id(token); };
  Detokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(id("\u00C3")), "");
  EXPECT_EQ(stream.push(id("<|im_end|>")), "");
  EXPECT_EQ(stream.push(id("\u00A9")), "\u00E9");
  EXPECT_EQ(stream.push(id("\u00E2")), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
  Detokenizer all(tokenizer, false);
  EXPECT_EQ(all.push(id("<|im_end|>")), "<|im_end|>");
}

}  // namespace
}  // namespace saccade
