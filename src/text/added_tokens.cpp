#include "text/added_tokens.h"

#include "text/unicode.h"

namespace saccade::text {
namespace {

const CodeSet kSpace = CodeSet::white_space();

// Where the white space that ends at `end` starts, not before `floor`.
size_t space_before(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    size_t start = end - 1;
    while (start > floor && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    size_t at = start;
    if (!kSpace.contains(next_code(text, at))) break;
    end = start;
  }
  return end;
}

size_t space_after(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t at = begin;
    if (!kSpace.contains(next_code(text, at))) break;
    begin = at;
  }
  return begin;
}

}  // namespace

int32_t AddedTokenMatcher::child(int32_t node, char byte) const {
  int32_t next = nodes_[static_cast<size_t>(node)].child;
  while (next >= 0 && nodes_[static_cast<size_t>(next)].byte != byte) next = nodes_[static_cast<size_t>(next)].sibling;
  return next;
}

void AddedTokenMatcher::add(std::string_view content, AddedToken token) {
  int32_t& first = root_[static_cast<unsigned char>(content[0])];
  if (first < 0) {
    first = static_cast<int32_t>(nodes_.size());
    nodes_.push_back({.byte = content[0]});
  }
  int32_t node = first;
  for (const char byte : content.substr(1)) {
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({.byte = byte, .sibling = nodes_[static_cast<size_t>(node)].child});
      nodes_[static_cast<size_t>(node)].child = next;
    }
    node = next;
  }
  nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;
  for (size_t start = 0; start < text.size();) {
    size_t end = 0;
    int32_t token = -1;
    int32_t node = root_[static_cast<unsigned char>(text[start])];
    for (size_t at = start + 1; node >= 0; ++at) {
      if (const int32_t found = nodes_[static_cast<size_t>(node)].token; found >= 0) {
        token = found;
        end = at;
      }
      node = at < text.size() ? child(node, text[at]) : -1;
    }
    if (token < 0) {
      ++start;
      continue;
    }
    // The search goes on behind the token itself, as in the reference, even where the token takes space from there.
    const AddedToken& added = tokens_[static_cast<size_t>(token)];
    const size_t left = added.strips_left ? space_before(text, start, done) : start;
    const size_t right = added.strips_right ? space_after(text, end) : end;
    if (done < left) segments.push_back({{done, left}});
    segments.push_back({{left, right}, added.id});
    done = right;
    start = end;
  }
  if (done < text.size()) segments.push_back({{done, text.size()}});
  return segments;
}

}  // namespace saccade::text
