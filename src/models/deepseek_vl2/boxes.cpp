#include "models/deepseek_vl2/boxes.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "models/boxes.h"

namespace saccade::deepseek_vl2 {
namespace {

constexpr std::string_view kRef = "<|ref|>", kRefEnd = "<|/ref|>", kDet = "<|det|>", kDetEnd = "<|/det|>";
constexpr std::string_view kSpace = " \t\r\n";
constexpr double kScale = 999;

std::string_view trim_left(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kSpace), text.size()));
}

std::string_view trim(std::string_view text) {
  text = trim_left(text);
  return text.substr(0, text.find_last_not_of(kSpace) + 1);
}

// Takes `word` from the front, spaces before it dropped.
bool take(std::string_view& text, std::string_view word) {
  text = trim_left(text);
  if (!text.starts_with(word)) return false;
  text.remove_prefix(word.size());
  return true;
}

using Corners = std::array<int, 4>;

bool take_corners(std::string_view& text, Corners& corners) {
  if (!take(text, "[")) return false;
  for (size_t i = 0; i < corners.size(); ++i) {
    if (i > 0 && !take(text, ",")) return false;
    text = trim_left(text);
    if (text.starts_with('-')) return false;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), corners[i]);
    if (error != std::errc()) return false;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
  }
  return take(text, "]");
}

// `text` is what follows <|det|>.
std::vector<Corners> take_group(std::string_view& text) {
  const size_t next = std::min(text.find(kRef), text.size());
  const size_t end = text.substr(0, next).find(kDetEnd);
  const bool cut_off = end == text.npos && next == text.size();
  std::string_view list = text.substr(0, std::min(end, next));
  text.remove_prefix(end == text.npos ? next : end + kDetEnd.size());
  std::vector<Corners> group;
  bool whole = take(list, "[");
  for (Corners corners; whole && take_corners(list, corners);) {
    group.push_back(corners);
    whole = take(list, ",");
  }
  if (!cut_off && !(take(list, "]") && trim(list).empty())) group.clear();
  return group;
}

}  // namespace

std::vector<Box> parse_boxes(std::string_view text, std::span<const Picture> pictures) {
  std::vector<Box> boxes;
  while (!pictures.empty()) {
    const size_t begin = text.find(kRef);
    if (begin == text.npos) break;
    text.remove_prefix(begin + kRef.size());
    const size_t end = text.find(kRefEnd);
    if (end == text.npos) break;
    std::string_view label = text.substr(0, end);
    if (const size_t inner = label.rfind(kRef); inner != label.npos) label.remove_prefix(inner + kRef.size());
    text.remove_prefix(end + kRefEnd.size());
    if (!take(text, kDet)) continue;
    for (const auto& [x1, y1, x2, y2] : take_group(text))
      boxes.push_back(
          box_of_shares(std::string(trim(label)), pictures, x1 / kScale, y1 / kScale, x2 / kScale, y2 / kScale));
  }
  return boxes;
}

}  // namespace saccade::deepseek_vl2
