// Stop strings in streamed text. Matching is by bytes, so it does not matter where tokens begin and end; the first
// string to become complete ends the text, and of several that end at the same byte the longest.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace saccade {

class StopMatcher {
 public:
  explicit StopMatcher(const std::vector<std::string>& stops);  // none of them empty

  // Takes the next piece of text; returns what can no longer become part of a stop string.
  std::string push(std::string_view piece);
  // The text held back, once nothing follows.
  std::string finish();
  bool matched() const { return matched_; }

 private:
  // Knuth-Morris-Pratt: `length` bytes of `text` are the longest prefix that the text seen so far ends with.
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // of text[0, i): its longest proper prefix that is a suffix, i = 0 .. size
    size_t length = 0;
  };
  std::vector<Stop> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace saccade
