#include "text/regex_syntax.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"

namespace saccade::text {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
constexpr int kMaxNesting = 32;
constexpr int kMaxRepeat = 1000;

bool is_letter(uint32_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

// All that is equal to an ASCII character when case is ignored: U+017F folds to s, U+212A to k.
CodeSet folded(uint32_t c) {
  if (!is_letter(c)) return CodeSet::of(c);
  std::vector<CodeRange> ranges = {{c | 0x20, c | 0x20}, {c & ~0x20u, c & ~0x20u}};
  if ((c | 0x20) == 's') ranges.push_back({0x17F, 0x17F});
  if ((c | 0x20) == 'k') ranges.push_back({0x212A, 0x212A});
  return CodeSet(std::move(ranges));
}

class Parser {
 public:
  Parser(std::string_view pattern, const std::string& origin) : pattern_(pattern), origin_(origin) {
    if (pattern.size() > kMaxPatternBytes) {
      fail("{}: pattern of {} bytes, the limit is {}", origin, pattern.size(), kMaxPatternBytes);
    }
  }

  RegexNode parse() {
    RegexNode node = choice(0, false);
    if (!done()) refuse("unmatched )");
    return node;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail("{}: {} at byte {} of the pattern {}", origin_, what, at_, pattern_);
  }
  bool done() const { return at_ == pattern_.size(); }
  bool sees(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }
  bool take(std::string_view text) {
    if (!sees(text)) return false;
    at_ += text.size();
    return true;
  }
  uint32_t code() {
    if (done()) refuse("unexpected end");
    return next_code(pattern_, at_);
  }

  RegexNode choice(int depth, bool ignore_case) {
    if (depth > kMaxNesting) refuse("groups nested too deeply");
    RegexNode node{.kind = RegexNode::kChoice};
    do {
      node.children.push_back(sequence(depth, ignore_case));
    } while (take("|"));
    return node.children.size() == 1 ? std::move(node.children[0]) : node;
  }

  RegexNode sequence(int depth, bool ignore_case) {
    RegexNode node;
    char previous = 0;  // letter just before, when case is ignored
    while (!done() && !sees("|") && !sees(")")) {
      const char letter = ignore_case && is_letter(static_cast<unsigned char>(pattern_[at_]))
                              ? static_cast<char>(pattern_[at_] | 0x20)
                              : char{0};
      for (const std::string_view ligature : {"ff", "fi", "fl", "ss", "st"}) {
        if (previous == ligature[0] && letter == ligature[1]) refuse("letters that fold from one ligature, under (?i)");
      }
      RegexNode one = atom(depth, ignore_case);
      const bool repeated = quantifier(one);
      previous = repeated ? char{0} : letter;
      node.children.push_back(std::move(one));
    }
    return node;
  }

  RegexNode group(int depth, bool ignore_case) {
    if (take("?:") || !sees("?")) return choice(depth + 1, ignore_case);
    if (take("?i:")) return choice(depth + 1, true);
    const bool negative = sees("?!");
    if (!take("?=") && !take("?!")) refuse("group of an unsupported kind");
    const RegexNode inner = choice(depth + 1, ignore_case);
    const RegexNode* one = &inner;
    while (one->kind == RegexNode::kSequence && one->children.size() == 1) one = &one->children[0];
    if (one->kind != RegexNode::kSet) refuse("look-ahead over anything but one character is unsupported");
    return {.kind = RegexNode::kAhead, .set = negative ? one->set.complement() : one->set, .at_end = negative};
  }

  RegexNode atom(int depth, bool ignore_case) {
    if (take("(")) {
      RegexNode node = group(depth, ignore_case);
      if (!take(")")) refuse("missing )");
      return node;
    }
    if (take("[")) return {.kind = RegexNode::kSet, .set = char_class(ignore_case)};
    if (take(".")) return {.kind = RegexNode::kSet, .set = CodeSet::of('\n').complement()};
    if (take("$")) return {.kind = RegexNode::kAhead, .set = CodeSet::of('\n'), .at_end = true};
    if (take("\\z")) return {.kind = RegexNode::kAhead, .at_end = true};
    if (sees("^") || sees("*") || sees("+") || sees("?") || sees("{")) refuse("unsupported or misplaced operator");
    if (take("\\")) {
      if (auto set = named_set()) return {.kind = RegexNode::kSet, .set = *std::move(set)};
      return {.kind = RegexNode::kSet, .set = single(escaped(), ignore_case)};
    }
    return {.kind = RegexNode::kSet, .set = single(code(), ignore_case)};
  }

  CodeSet single(uint32_t c, bool ignore_case) const {
    if (!ignore_case) return CodeSet::of(c);
    if (c > 0x7F) refuse("a character beyond ASCII under (?i) is unsupported");
    return folded(c);
  }

  // After a backslash: \s \S \d \D \p{..} \P{..}; nothing taken when it is another escape.
  std::optional<CodeSet> named_set() {
    if (take("s")) return CodeSet::white_space();
    if (take("S")) return CodeSet::white_space().complement();
    if (take("d")) return CodeSet::category("Nd");
    if (take("D")) return CodeSet::category("Nd").complement();
    if (!sees("p{") && !sees("P{")) return std::nullopt;
    const bool capital = sees("P{");
    at_ += 2;
    const bool negative = take("^") != capital;
    const size_t close = pattern_.find('}', at_);
    if (close == pattern_.npos) refuse("missing }");
    CodeSet set = CodeSet::category(pattern_.substr(at_, close - at_));
    if (set.empty()) refuse("unknown \\p property (general categories like L or Nd are supported)");
    at_ = close + 1;
    return negative ? set.complement() : set;
  }

  uint32_t hex(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const uint32_t c = code();
      if (c >= '0' && c <= '9') {
        value = value << 4 | (c - '0');
      } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
        value = value << 4 | ((c | 0x20) - 'a' + 10);
      } else {
        refuse("hexadecimal digit expected");
      }
    }
    return value;
  }

  // After a backslash: one character.
  uint32_t escaped() {
    const uint32_t c = code();
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'v':
        return '\v';
      case 'f':
        return '\f';
      case 'u':
        return hex(4);
      default:
        break;
    }
    if (c > 0x7F || is_letter(c) || (c >= '0' && c <= '9')) refuse("unsupported escape");
    return c;
  }

  // After "[": as far as the closing bracket.
  CodeSet char_class(bool ignore_case) {
    const bool negative = take("^");
    std::vector<CodeRange> ranges;
    const auto add = [&](const CodeSet& set) { ranges.insert(ranges.end(), set.ranges().begin(), set.ranges().end()); };
    if (sees("]")) refuse("empty class");
    while (!take("]")) {
      if (sees("[")) refuse("class inside a class is unsupported");
      if (sees("&&")) refuse("intersection of classes is unsupported");
      const bool escape = take("\\");
      if (escape) {
        if (auto set = named_set()) {
          if (sees("-") && !sees("-]")) refuse("range from a class");
          add(*set);
          continue;
        }
      }
      const uint32_t first = escape ? escaped() : code();
      uint32_t last = first;
      if (sees("-") && !sees("-]")) {
        at_ += 1;
        if (sees("[")) refuse("range to a class");
        const bool last_escape = take("\\");
        if (last_escape && named_set()) refuse("range to a class");
        last = last_escape ? escaped() : code();
        if (last < first) refuse("range out of order");
      }
      if (ignore_case) {
        for (uint32_t c = first; c <= std::min(last, 0x7Fu); ++c) add(single(c, true));
        if (last > 0x7F) refuse("a character beyond ASCII under (?i) is unsupported");
      } else {
        ranges.push_back({first, last});
      }
    }
    const CodeSet set(std::move(ranges));
    return negative ? set.complement() : set;
  }

  std::optional<int> number() {
    const size_t start = at_;
    int value = 0;
    while (!done() && pattern_[at_] >= '0' && pattern_[at_] <= '9') {
      value = value * 10 + (pattern_[at_++] - '0');
      if (value > kMaxRepeat) refuse("repeat count too large");
    }
    return at_ == start ? std::nullopt : std::optional(value);
  }

  // Wraps `node` when a quantifier follows.
  bool quantifier(RegexNode& node) {
    int min = 0, max = -1;
    bool exact = false;
    if (take("?")) {
      max = 1;
    } else if (take("+")) {
      min = 1;
    } else if (take("{")) {
      const auto low = number();
      exact = !sees(",");
      take(",");
      const auto high = exact ? low : number();
      if (!take("}") || (!low && !high)) refuse("malformed repeat count");
      min = low.value_or(0);
      max = high.value_or(-1);
      if (max >= 0 && max < min) refuse("repeat counts out of order");
    } else if (!take("*")) {
      return false;
    }
    if (node.may_be_empty()) refuse("repeat of something that may be empty is unsupported");
    const bool lazy = !exact && take("?");
    if (sees("+") || sees("*") || sees("?") || sees("{")) refuse("possessive or stacked quantifier is unsupported");
    RegexNode repeat{.kind = RegexNode::kRepeat, .min = min, .max = max, .greedy = !lazy};
    repeat.children.push_back(std::move(node));
    node = std::move(repeat);
    return true;
  }

  std::string_view pattern_;
  const std::string& origin_;
  size_t at_ = 0;
};

}  // namespace

bool RegexNode::may_be_empty() const {
  const auto empty = [](const RegexNode& n) { return n.may_be_empty(); };
  switch (kind) {
    case kSet:
      return false;
    case kAhead:
      return true;
    case kSequence:
      return std::all_of(children.begin(), children.end(), empty);
    case kChoice:
      return std::any_of(children.begin(), children.end(), empty);
    case kRepeat:
      return min == 0 || children[0].may_be_empty();
  }
  return true;
}

RegexNode parse_regex(std::string_view pattern, const std::string& origin) { return Parser(pattern, origin).parse(); }

}  // namespace saccade::text
