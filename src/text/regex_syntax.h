// Pattern text to syntax tree, for text/regex.h.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace saccade::text {

struct RegexNode {
  enum Kind { kSet, kAhead, kSequence, kChoice, kRepeat };
  Kind kind = kSequence;
  CodeSet set = {};      // kSet: the next character is in it; kAhead: the same without taking it
  bool at_end = false;   // kAhead: holds at the end of the text
  int min = 0, max = 0;  // kRepeat; max < 0 is without bound
  bool greedy = true;
  std::vector<RegexNode> children = {};

  bool may_be_empty() const;
};

// Throws Error; `origin` names file and key in it.
RegexNode parse_regex(std::string_view pattern, const std::string& origin);

}  // namespace saccade::text
