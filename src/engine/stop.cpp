#include "engine/stop.h"

#include <algorithm>
#include <utility>

namespace saccade {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (const std::string& text : stops) {
    std::vector<size_t> border(text.size() + 1, 0);
    for (size_t i = 1; i < text.size(); ++i) {
      size_t n = border[i];
      while (n > 0 && text[n] != text[i]) n = border[n];
      border[i + 1] = text[n] == text[i] ? n + 1 : 0;
    }
    stops_.push_back({text, std::move(border)});
  }
}

std::string StopMatcher::push(std::string_view piece) {
  if (matched_) return {};
  size_t keep = 0;  // longest beginning of a stop string that the text ends with
  for (const char c : piece) {
    held_ += c;
    keep = 0;
    for (Stop& s : stops_) {
      while (s.length > 0 && s.text[s.length] != c) s.length = s.border[s.length];
      if (s.text[s.length] == c) ++s.length;
      keep = std::max(keep, s.length);
      if (s.length == s.text.size()) matched_ = true;
    }
    if (matched_) break;
  }
  if (matched_) {
    size_t cut = 0;
    for (const Stop& s : stops_)
      if (s.length == s.text.size()) cut = std::max(cut, s.length);
    held_.resize(held_.size() - cut);
    return std::exchange(held_, {});
  }
  if (piece.empty()) return {};
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopMatcher::finish() { return std::exchange(held_, {}); }

}  // namespace saccade
