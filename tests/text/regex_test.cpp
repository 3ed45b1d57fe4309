#include "text/regex.h"

#include <gmock/gmock.h>

#include "text/text_test.h"

namespace saccade::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  std::vector<Span> spans;
  Regex::compile(pattern, "pattern").find_all(text, spans);
  std::vector<std::string> result;
  for (const Span& s : spans) result.emplace_back(text.substr(s.begin, s.end - s.begin));
  return result;
}

TEST(Regex, PrefersTheFirstAlternativeAndGreed) {
  EXPECT_THAT(matches("a|ab", "abab"), ElementsAre("a", "a"));
  EXPECT_THAT(matches("ab|a", "abaab"), ElementsAre("ab", "a", "ab"));
  EXPECT_THAT(matches("(?:a|ab)(?:c|bcd)", "abcd"), ElementsAre("abcd"));
  EXPECT_THAT(matches("(a|ab)(c|bcd)?", "abcd"), ElementsAre("abcd"));
  EXPECT_THAT(matches("a+?|b+", "aabb"), ElementsAre("a", "a", "bb"));
  EXPECT_THAT(matches("a{2,3}", "aaaaaaa"), ElementsAre("aaa", "aaa"));
  EXPECT_THAT(matches("a{2,3}?", "aaaaa"), ElementsAre("aa", "aa"));
  EXPECT_THAT(matches("a{2}", "aaaaa"), ElementsAre("aa", "aa"));
  EXPECT_THAT(matches("a{2,}b", "abaab"), ElementsAre("aab"));
  EXPECT_THAT(matches("ba{,2}", "baaab"), ElementsAre("baa", "b"));
  EXPECT_THAT(matches("a*b|a", "aaac"), ElementsAre("a", "a", "a"));
}

TEST(Regex, LooksAhead) {
  EXPECT_THAT(matches(R"(\s+(?!\S)|\s+)", "a   b  "), ElementsAre("  ", " ", "  "));
  EXPECT_THAT(matches("a(?=b)", "abaa"), ElementsAre("a"));
  EXPECT_THAT(matches("a(?!b)", "abaa"), ElementsAre("a", "a"));
  EXPECT_THAT(matches("a$", "aa\nba"), ElementsAre("a", "a"));
  EXPECT_THAT(matches("a\\z", "a\naa"), ElementsAre("a"));
}

TEST(Regex, ReadsClassesAndEscapes) {
  EXPECT_THAT(matches(R"([^\s\p{L}]+)", "ab12.c \u00e9!"), ElementsAre("12.", "!"));
  EXPECT_THAT(matches(R"([a\-c]+)", "abc-a"), ElementsAre("a", "c-a"));
  EXPECT_THAT(matches("[a-c]+", "abcd-"), ElementsAre("abc"));
  EXPECT_THAT(matches("[ac-]+", "ab-c"), ElementsAre("a", "-c"));
  EXPECT_THAT(matches(R"([\u0041-\u0043\n]+)", "AB\nx"), ElementsAre("AB\n"));
  EXPECT_THAT(matches(R"(\p{^L}|\P{Ll})", "aB1"), ElementsAre("B", "1"));
  EXPECT_THAT(matches("(?i:'s|k+)", "'S'\u017fKk\u212aq"), ElementsAre("'S", "'\u017f", "Kk\u212a"));
  EXPECT_THAT(matches(".", "a\n\u6f22"), ElementsAre("a", "\u6f22"));
  EXPECT_THAT(matches(R"(\d\D)", "1a23b"), ElementsAre("1a", "3b"));
}

TEST(Regex, RefusesWhatItCannotDo) {
  const auto refused = [](std::string_view pattern, const std::string& part) {
    EXPECT_THAT(error_of([&] { Regex::compile(pattern, "f: k"); }), HasSubstr(part)) << pattern;
  };
  for (const std::string_view pattern : {"(?<=a)b",     "(?>a)b",
                                         "(?<n>a)",     "(?i)a",
                                         "\\ba",        "\\wa",
                                         "\\1",         "^a",
                                         "a++",         "a?+",
                                         "a**",         "*a",
                                         "a{",          "a{3,2}",
                                         "a{2}+",       "a{1001}",
                                         "(a",          "a)",
                                         "[a",          "[]",
                                         "[b-a]",       "[a-\\s]",
                                         "[[:alpha:]]", "[a&&b]",
                                         "\\p{Han}",    "\\p{",
                                         "\\p{N",       "\\u12",
                                         "\\",          "(?=ab)c",
                                         "(?!a|b)c",    "(?i:\u00e9)",
                                         "(?i:fi)",     "(?i:[\u00e0-\u00e9])",
                                         "(a*)*",       "(?:$)+"}) {
    refused(pattern, "of the pattern");
  }
  for (const std::string_view pattern : {"a*", "", "a|", "$", "(?!a)"}) refused(pattern, "can match nothing at all");
  refused("((a{100}){100}){100}", "too long");
  refused(std::string(100, '('), "nested too deeply");
  refused(std::string(20000, 'a'), "the limit is 16384");
  // A table of exponential size.
  refused("(?:a|b)*a(?:a|b){20}c", "too complex");
}

// Read naively these patterns cost the square of the length of the text.
TEST(Regex, StaysLinear) {
  const size_t n = size_t{1} << 20;
  EXPECT_EQ(matches(R"(\s+$)", std::string(n, ' ') + "x").size(), 0u);
  EXPECT_EQ(matches("a*b|a", std::string(n, 'a')).size(), n);
  EXPECT_EQ(matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", std::string(n, ' ') + "x").size(), 2u);
}

TEST(CodeSet, KnowsCategories) {
  EXPECT_TRUE(CodeSet::category("L").contains('a'));
  EXPECT_TRUE(CodeSet::category("Lu").contains(0x10400));
  EXPECT_FALSE(CodeSet::category("Lu").contains('a'));
  EXPECT_TRUE(CodeSet::category("Cn").contains(0x10FFFF));
  EXPECT_TRUE(CodeSet::category("Cs").contains(0xDFFF));
  EXPECT_TRUE(CodeSet::category("Xy").empty());
  EXPECT_TRUE(CodeSet::category("").empty());
  const CodeSet space = CodeSet::white_space();
  for (const uint32_t c : {0x09, 0x0D, 0x20, 0x85, 0xA0, 0x3000}) EXPECT_TRUE(space.contains(c)) << c;
  for (const uint32_t c : {0x08, 0x0E, 0x1F, 0x200B, 0xFEFF}) EXPECT_FALSE(space.contains(c)) << c;
  EXPECT_EQ(space.complement().complement().ranges().size(), space.ranges().size());
  EXPECT_FALSE(space.complement().contains(' '));
  EXPECT_EQ(CodeSet({{5, 9}, {0, 4}, {8, 12}, {20, 20}}).ranges().size(), 2u);
}

TEST(Nfc, ComposesAsTheReferenceDoes) {
  EXPECT_EQ(nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(nfc("ae\u0301\u0323b"), "a\u1eb9\u0301b");
  EXPECT_EQ(nfc("\u010f\u0323"), "\u1e0d\u030c");
  EXPECT_EQ(nfc("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(nfc("\u212b\u0958"), "\u00c5\u0915\u093c");
  EXPECT_EQ(nfc("\u0301\u0323x\u0301"), "\u0323\u0301x\u0301");
  // Newer than the reference's Unicode: left alone.
  EXPECT_EQ(nfc("\u089f\u0323"), "\u089f\u0323");
  EXPECT_EQ(nfc("\U000105d2\u0307"), "\U000105d2\u0307");
  EXPECT_EQ(nfc(""), "");
}

}  // namespace
}  // namespace saccade::text
