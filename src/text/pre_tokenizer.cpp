#include "text/pre_tokenizer.h"

#include <string_view>
#include <utility>

namespace saccade::text {
namespace {

struct Part {
  Span span;
  bool matched;
};

// Appends the pieces that `step` makes of text[whole]; `matches` and `parts` are scratch.
void split(const SplitStep& step, std::string_view text, Span whole, std::vector<Span>& matches,
           std::vector<Part>& parts, std::vector<Span>& pieces) {
  matches.clear();
  parts.clear();
  step.regex.find_all(text.substr(whole.begin, whole.end - whole.begin), matches);
  size_t done = whole.begin;
  for (const Span& m : matches) {
    const Span span{m.begin + whole.begin, m.end + whole.begin};
    if (span.begin > done) parts.push_back({{done, span.begin}, step.invert});
    parts.push_back({span, !step.invert});
    done = span.end;
  }
  if (done < whole.end) parts.push_back({{done, whole.end}, step.invert});

  const size_t first = pieces.size();
  bool previous = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    bool joins = false;  // the piece before
    switch (step.behavior) {
      case SplitBehavior::kRemoved:
        if (part.matched) continue;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kMergedWithPrevious:
        joins = part.matched && !previous;
        break;
      case SplitBehavior::kMergedWithNext:
        joins = !part.matched && previous;
        break;
      case SplitBehavior::kContiguous:
        joins = part.matched == previous;
        break;
    }
    previous = part.matched;
    if (joins && pieces.size() > first) {
      pieces.back().end = part.span.end;
    } else {
      pieces.push_back(part.span);
    }
  }
}

void run(const std::vector<SplitStep>& steps, std::string_view text, std::vector<Span>& pieces) {
  std::vector<Span> matches, result;
  std::vector<Part> parts;
  for (const SplitStep& step : steps) {
    result.clear();
    for (const Span& piece : pieces) split(step, text, piece, matches, parts, result);
    pieces.swap(result);
  }
}

}  // namespace

std::vector<Span> PreTokenizer::apply(std::string& text) const {
  std::vector<Span> pieces;
  if (!text.empty()) pieces.push_back({0, text.size()});
  run(steps, text, pieces);
  if (add_prefix_space) {
    std::string spaced;
    for (Span& piece : pieces) {
      const size_t begin = spaced.size();
      if (text[piece.begin] != ' ') spaced += ' ';
      spaced.append(text, piece.begin, piece.end - piece.begin);
      piece = {begin, spaced.size()};
    }
    text = std::move(spaced);
  }
  run(byte_level_steps, text, pieces);
  return pieces;
}

}  // namespace saccade::text
