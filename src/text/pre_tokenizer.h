// Cuts normalised text into the pieces that BPE may not merge across.
#pragma once

#include <string>
#include <vector>

#include "text/regex.h"

namespace saccade::text {

// What becomes of the matches of a Split: named as in tokenizer.json.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Regex regex = {};
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // the text between the matches counts as matched, and the other way round
};

struct PreTokenizer {
  std::vector<SplitStep> steps;
  // Of the closing ByteLevel step: a space before every piece that has none, then the cut by regex when there is one.
  bool add_prefix_space = false;
  std::vector<SplitStep> byte_level_steps;

  // Pieces of `text` (valid UTF-8) in order, none of them empty. Changes `text` when spaces are added.
  std::vector<Span> apply(std::string& text) const;
};

}  // namespace saccade::text
