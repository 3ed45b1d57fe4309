// The regular expressions of tokenizer.json as a table-driven automaton: the leftmost match that a backtracking engine
// would prefer (first alternative, greedy first), found in linear time whatever the text. Libraries of the system
// backtrack, so that hostile text costs its square or hits a match limit, and know another Unicode than the reference.
//
// Supported: alternation, groups, (?i:) over ASCII, classes, \p{category}, \s \d and their negations, greedy and lazy
// quantifiers, $ \z and look-ahead over one character. Meaning and Unicode version are those of the reference's engine
// (Oniguruma, Ruby syntax: $ also stands before every newline). All else is refused when the pattern is compiled:
// look-behind, back-references, possessive quantifiers, anchors at the start, scripts, and patterns that match nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace saccade::text {

struct Span {
  size_t begin, end;  // bytes
};

class Regex {
 public:
  // Throws Error; `origin` names file and key in it.
  static Regex compile(std::string_view pattern, const std::string& origin);
  static Regex literal(std::string_view text, const std::string& origin);
  static Regex any_of(const CodeSet& set, bool repeated);

  // Appends the successive matches in `text` (valid UTF-8) to `matches`.
  void find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Builder;
  uint8_t class_of(uint32_t code) const {
    return code < 128 ? ascii_[code] : pages_[size_t{page_of_[code >> 8]} << 8 | (code & 0xFF)];
  }

  uint32_t symbols_ = 0;        // character classes, and last the end of the text
  std::vector<uint16_t> step_;  // [state, symbol] -> next state << 1 | matched before the symbol; state 0 is dead
  uint8_t ascii_[128] = {};     // class of each code point, in pages of 256
  std::vector<uint16_t> page_of_;
  std::vector<uint8_t> pages_;
};

}  // namespace saccade::text
