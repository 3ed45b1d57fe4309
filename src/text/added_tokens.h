// Finds the added tokens of tokenizer.json in text, as the reference does: leftmost, of those the longest.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace saccade::text {

struct AddedToken {
  int32_t id = 0;
  bool strips_left = false;  // takes white space beside it along
  bool strips_right = false;
};

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() { root_.fill(-1); }
  void add(std::string_view content, AddedToken token);
  bool empty() const { return tokens_.empty(); }

  struct Segment {
    Span span;
    int32_t id = -1;  // -1: ordinary text
  };
  // Cuts all of `text` (valid UTF-8) into tokens and the text between them; no segment of text is empty.
  std::vector<Segment> split(std::string_view text) const;

 private:
  struct Node {
    char byte;
    int32_t token = -1;  // index of the token that ends here
    int32_t child = -1, sibling = -1;
  };
  int32_t child(int32_t node, char byte) const;

  std::array<int32_t, 256> root_;
  std::vector<Node> nodes_;
  std::vector<AddedToken> tokens_;
};

}  // namespace saccade::text
