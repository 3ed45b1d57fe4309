// Byte-pair encoding of one piece: the pair of lowest rank merges first, the leftmost of equals.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace saccade::text {

class Bpe {
 public:
  Bpe() = default;
  // byte_ids[b]: id of the token that is byte b alone, or -1 where no text can contain that byte.
  Bpe(std::vector<int32_t> byte_ids, size_t merge_count);
  // The next merge in rank order; a pair given twice keeps the later rank.
  void add_merge(int32_t left, int32_t right, int32_t merged);

  // Whether ordinary text can come out as this token.
  bool makes(int32_t id) const;

  struct Symbol {
    int32_t id;  // -1: merged into the symbol before
    int32_t previous, next;
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<uint64_t> sorted, heap;
  };
  // Appends the ids of `piece` (part of valid UTF-8, at most 2^31 - 1 bytes). O(n log n).
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Slot {
    uint64_t pair;
    uint32_t rank = kNone;  // kNone: the slot is free
  };
  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const;
  uint32_t rank_of(int32_t left, int32_t right) const { return slots_[slot_of(pair_of(left, right))].rank; }

  std::vector<int32_t> byte_ids_;
  std::vector<Slot> slots_;      // open addressing, a power of two of them, at most 2/3 taken
  std::vector<int32_t> merged_;  // by rank
};

}  // namespace saccade::text
