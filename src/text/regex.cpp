#include "text/regex.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "text/regex_syntax.h"

namespace saccade::text {
namespace {

constexpr size_t kMaxInstructions = 4096;
constexpr size_t kMaxStates = 2048;
constexpr size_t kMaxSymbols = 128;
constexpr size_t kMaxSets = 256;
constexpr size_t kMaxWork = size_t{1} << 22;  // instructions visited while the table is built
constexpr size_t kNoMatch = SIZE_MAX;
// Text read beyond a match before it is worth remembering that nothing came of it.
constexpr size_t kLongOverrun = 64;

struct Instruction {
  enum Kind { kTake, kAhead, kSplit, kMatch };
  Kind kind = kMatch;
  size_t set = 0;  // kTake, kAhead: index of the set
  bool at_end = false;
  std::vector<uint16_t> next;  // by falling priority
};

}  // namespace

// Thompson's construction, then the subset construction over lists of instructions ordered by priority (after a match
// nothing of lower priority goes on). A list is expanded only once the next symbol is known, which decides look-ahead.
struct Regex::Builder {
  const std::string& origin;
  std::vector<Instruction> program = {};
  std::vector<CodeSet> sets = {};
  std::vector<std::vector<bool>> holds = {};  // [set][symbol]
  std::vector<uint32_t> seen = {};
  uint32_t round = 0;
  size_t work = 0;

  uint16_t emit(Instruction instruction) {
    if (program.size() >= kMaxInstructions)
      fail("{}: the pattern is too long when its repeats are written out", origin);
    program.push_back(std::move(instruction));
    return static_cast<uint16_t>(program.size() - 1);
  }

  size_t set_index(const CodeSet& set) {
    const auto same = [&](const CodeSet& s) {
      return std::equal(s.ranges().begin(), s.ranges().end(), set.ranges().begin(), set.ranges().end(),
                        [](const CodeRange& a, const CodeRange& b) { return a.first == b.first && a.last == b.last; });
    };
    const auto it = std::find_if(sets.begin(), sets.end(), same);
    if (it != sets.end()) return static_cast<size_t>(it - sets.begin());
    if (sets.size() >= kMaxSets) fail("{}: the pattern has more than {} different classes", origin, kMaxSets);
    sets.push_back(set);
    return sets.size() - 1;
  }

  // Code that matches `node` and goes on at `next`; returns its first instruction.
  uint16_t compile(const RegexNode& node, uint16_t next) {
    switch (node.kind) {
      case RegexNode::kSet:
        return emit({Instruction::kTake, set_index(node.set), false, {next}});
      case RegexNode::kAhead:
        return emit({Instruction::kAhead, set_index(node.set), node.at_end, {next}});
      case RegexNode::kSequence:
        for (size_t i = node.children.size(); i-- > 0;) next = compile(node.children[i], next);
        return next;
      case RegexNode::kChoice: {
        Instruction split{Instruction::kSplit, 0, false, {}};
        for (const RegexNode& child : node.children) split.next.push_back(compile(child, next));
        return emit(std::move(split));
      }
      case RegexNode::kRepeat:
        break;
    }
    const RegexNode& body = node.children[0];
    const auto either = [&](uint16_t again, uint16_t out) {
      return node.greedy ? std::vector<uint16_t>{again, out} : std::vector<uint16_t>{out, again};
    };
    uint16_t entry = next;
    if (node.max < 0) {
      entry = emit({Instruction::kSplit, 0, false, {}});
      const uint16_t again = compile(body, entry);
      program[entry].next = either(again, next);
    }
    for (int i = node.min; i < node.max; ++i) {
      const uint16_t again = compile(body, entry);
      entry = emit({Instruction::kSplit, 0, false, either(again, next)});
    }
    for (int i = 0; i < node.min; ++i) entry = compile(body, entry);
    return entry;
  }

  // Cuts the code points into classes that no set tells apart.
  void classify(Regex& regex) {
    std::vector<uint32_t> cuts = {0, kMaxCodePoint + 1};
    for (const CodeSet& set : sets) {
      for (const CodeRange& r : set.ranges()) {
        cuts.push_back(r.first);
        cuts.push_back(r.last + 1);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

    std::map<std::vector<bool>, uint8_t> classes;
    std::string page(256, '\0');
    std::map<std::string, uint16_t> pages;
    std::vector<size_t> place(sets.size(), 0);  // in each set, the range at or behind the current cut
    regex.page_of_.resize((kMaxCodePoint + 1) >> 8);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      std::vector<bool> member(sets.size());
      for (size_t s = 0; s < sets.size(); ++s) {
        const auto& ranges = sets[s].ranges();
        while (place[s] < ranges.size() && ranges[place[s]].last < cuts[i]) ++place[s];
        member[s] = place[s] < ranges.size() && ranges[place[s]].first <= cuts[i];
      }
      const auto [it, added] = classes.try_emplace(std::move(member), static_cast<uint8_t>(classes.size()));
      if (added && classes.size() > kMaxSymbols)
        fail("{}: the pattern tells too many kinds of characters apart", origin);
      for (uint32_t code = cuts[i]; code < cuts[i + 1];) {
        const uint32_t stop = std::min(cuts[i + 1], (code | 0xFF) + 1);
        std::fill(page.begin() + (code & 0xFF), page.begin() + (code & 0xFF) + (stop - code),
                  static_cast<char>(it->second));
        if ((stop & 0xFF) == 0) {
          const auto [entry, fresh] = pages.try_emplace(page, static_cast<uint16_t>(pages.size()));
          if (fresh) regex.pages_.insert(regex.pages_.end(), page.begin(), page.end());
          regex.page_of_[code >> 8] = entry->second;
        }
        code = stop;
      }
    }
    for (uint32_t c = 0; c < 128; ++c) regex.ascii_[c] = regex.pages_[size_t{regex.page_of_[0]} << 8 | c];
    regex.symbols_ = static_cast<uint32_t>(classes.size()) + 1;
    holds.assign(sets.size(), std::vector<bool>(classes.size()));
    for (const auto& [member, symbol] : classes) {
      for (size_t s = 0; s < sets.size(); ++s) holds[s][symbol] = member[s];
    }
  }

  // Where the threads of `state` stand after `symbol`; `matched` says whether one ends before it.
  std::vector<uint16_t> advance(const std::vector<uint16_t>& state, uint32_t symbol, bool at_end, bool& matched) {
    std::vector<uint16_t> result;
    std::vector<uint16_t> stack(state.rbegin(), state.rend());
    const uint32_t expanded = ++round, reached = ++round;
    matched = false;
    while (!stack.empty()) {
      const uint16_t pc = stack.back();
      stack.pop_back();
      const Instruction& at = program[pc];
      if (seen[2 * pc] == expanded) continue;
      seen[2 * pc] = expanded;
      if (++work > kMaxWork) fail("{}: the pattern is too complex", origin);
      const auto held = [&] { return at_end ? at.at_end : bool{holds[at.set][symbol]}; };
      if (at.kind == Instruction::kMatch) {
        matched = true;
        break;
      }
      if (at.kind == Instruction::kTake) {
        const uint16_t next = at.next[0];
        if (at_end || !held() || seen[2 * next + 1] == reached) continue;
        seen[2 * next + 1] = reached;
        result.push_back(next);
      } else if (at.kind == Instruction::kSplit || held()) {
        stack.insert(stack.end(), at.next.rbegin(), at.next.rend());
      }
    }
    return result;
  }

  Regex build(const RegexNode& root) {
    const uint16_t match = emit({});
    const uint16_t start = compile(root, match);
    Regex regex;
    classify(regex);
    seen.assign(program.size() * 2, 0);
    std::map<std::vector<uint16_t>, uint16_t> ids = {{{}, uint16_t{0}}, {{start}, uint16_t{1}}};
    std::vector<std::vector<uint16_t>> states = {{}, {start}};
    for (size_t s = 0; s < states.size(); ++s) {
      for (uint32_t symbol = 0; symbol < regex.symbols_; ++symbol) {
        bool matched = false;
        auto after = advance(std::vector<uint16_t>(states[s]), symbol, symbol + 1 == regex.symbols_, matched);
        if (matched && s == 1) fail("{}: the pattern can match nothing at all", origin);
        const auto [it, added] = ids.try_emplace(after, static_cast<uint16_t>(states.size()));
        if (added) states.push_back(std::move(after));
        if (states.size() > kMaxStates) fail("{}: the pattern is too complex", origin);
        regex.step_.push_back(static_cast<uint16_t>(it->second << 1 | (matched ? 1 : 0)));
      }
    }
    return regex;
  }
};

Regex Regex::compile(std::string_view pattern, const std::string& origin) {
  return Builder{origin}.build(parse_regex(pattern, origin));
}

Regex Regex::literal(std::string_view text, const std::string& origin) {
  RegexNode sequence;
  for (size_t at = 0; at < text.size();) {
    sequence.children.push_back({.kind = RegexNode::kSet, .set = CodeSet::of(next_code(text, at))});
  }
  return Builder{origin}.build(sequence);
}

Regex Regex::any_of(const CodeSet& set, bool repeated) {
  RegexNode one{.kind = RegexNode::kSet, .set = set};
  if (!repeated) return Builder{""}.build(one);
  RegexNode many{.kind = RegexNode::kRepeat, .min = 1, .max = -1};
  many.children.push_back(std::move(one));
  return Builder{""}.build(many);
}

void Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  const uint32_t end_symbol = symbols_ - 1;
  const auto step = [&](uint16_t state, size_t& at) {
    const uint32_t symbol = at < text.size() ? class_of(next_code(text, at)) : end_symbol;
    return step_[size_t{state} * symbols_ + symbol];
  };
  // fruitless[p] = s: from state s at byte p no match ends any more. An attempt that comes to a pair known to be
  // fruitless stops, so that text read in vain (\s+$ in a long run of spaces) is not read again from every start.
  std::vector<uint16_t> fruitless;
  for (size_t start = 0; start < text.size();) {
    size_t at = start, match = kNoMatch, resume = start;
    uint16_t state = 1, resume_state = 1;
    bool ended = false;
    while (state != 0 && !ended) {
      if (!fruitless.empty() && fruitless[at] == state) break;
      const size_t before = at;
      ended = at == text.size();
      const uint16_t entry = step(state, at);
      state = static_cast<uint16_t>(entry >> 1);
      if (entry & 1) {
        match = before;
        resume = at;
        resume_state = state;
      }
    }
    if (at - resume > kLongOverrun) {
      if (fruitless.empty()) fruitless.assign(text.size() + 1, 0);
      for (size_t p = resume; p < at;) {
        fruitless[p] = resume_state;
        resume_state = static_cast<uint16_t>(step(resume_state, p) >> 1);
      }
    }
    if (match == kNoMatch) {
      next_code(text, start);
    } else {
      matches.push_back({start, match});
      start = match;
    }
  }
}

}  // namespace saccade::text
