#include "engine/stop.h"

#include <gtest/gtest.h>

namespace saccade {
namespace {

struct Outcome {
  std::string text;
  bool matched;
  bool operator==(const Outcome&) const = default;
};

Outcome stream(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopMatcher matcher(stops);
  Outcome out;
  for (size_t i = 0; i < text.size(); i += piece) out.text += matcher.push(text.substr(i, piece));
  out.text += matcher.finish();
  out.matched = matcher.matched();
  return out;
}

TEST(StopMatcher, DoesNotDependOnPieces) {
  const struct {
    std::vector<std::string> stops;
    std::string text, expected;
    bool matched;
  } cases[] = {
      {{}, "plain text", "plain text", false},
      {{"END"}, "one EN two END three", "one EN two ", true},
      {{"END"}, "at the very EN", "at the very EN", false},
      {{"\n\n"}, "a\nb\n\nc", "a\nb", true},
      {{"aab"}, "aaaab", "aa", true},
      {{"abab", "x"}, "ababab", "", true},
      {{"abcd", "bc"}, "abcd", "a", true},  // the first to be complete
      {{"c", "abc"}, "abc", "", true},      // the longest of those that end together
      {{"\u20ac"}, "5 \u00e9 \u20ac", "5 \u00e9 ", true},
      {{"\u20ad"}, "5 \u20ac!", "5 \u20ac!", false},  // shares two bytes
  };
  for (const auto& c : cases)
    for (size_t piece = 1; piece <= 6; ++piece)
      EXPECT_EQ(stream(c.stops, c.text, piece), (Outcome{c.expected, c.matched})) << c.text << " by " << piece;
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"stop!", "topaz"});
  EXPECT_EQ(matcher.push("say sto"), "say ");
  EXPECT_EQ(matcher.push(""), "");
  EXPECT_EQ(matcher.push("pa"), "s");  // "topa" may still become "topaz"
  EXPECT_EQ(matcher.push("l"), "topal");
  EXPECT_EQ(matcher.push(" stop"), " ");
  EXPECT_EQ(matcher.push("!later"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, MatchesTheNaiveSearchOnAllShortTexts) {
  const std::vector<std::vector<std::string>> sets = {{"aba"}, {"aab", "ba"}, {"abb", "bab", "bb"}, {"aaa", "aa"}};
  for (const auto& stops : sets)
    for (unsigned bits = 0; bits < 256; ++bits) {
      std::string text;
      for (unsigned i = 0; i < 8; ++i) text += bits >> i & 1 ? 'a' : 'b';
      Outcome naive{text, false};
      for (size_t end = 1; end <= text.size() && !naive.matched; ++end)
        for (const auto& s : stops)
          if (text.substr(0, end).ends_with(s) && (!naive.matched || end - s.size() < naive.text.size()))
            naive = {text.substr(0, end - s.size()), true};
      EXPECT_EQ(stream(stops, text, 1 + bits % 3), naive) << text;
    }
}

}  // namespace
}  // namespace saccade
