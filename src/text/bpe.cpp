#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

namespace saccade::text {
Bpe::Bpe(std::vector<int32_t> byte_ids, size_t merge_count)
    : byte_ids_(std::move(byte_ids)), slots_(std::bit_ceil(merge_count + merge_count / 2 + 2)) {
  merged_.reserve(merge_count);
}

size_t Bpe::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  uint64_t hash = pair * 0x9E3779B97F4A7C15u;
  hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
  size_t slot = (hash >> 32) & mask;
  while (slots_[slot].rank != kNone && slots_[slot].pair != pair) slot = (slot + 1) & mask;
  return slot;
}

void Bpe::add_merge(int32_t left, int32_t right, int32_t merged) {
  const uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {pair, static_cast<uint32_t>(merged_.size())};
  merged_.push_back(merged);
}

bool Bpe::makes(int32_t id) const {
  return std::find(byte_ids_.begin(), byte_ids_.end(), id) != byte_ids_.end() ||
         std::find(merged_.begin(), merged_.end(), id) != merged_.end();
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  const auto id_of = [&](size_t i) { return byte_ids_[static_cast<unsigned char>(piece[i])]; };
  if (piece.size() == 1) {
    out.push_back(id_of(0));
    return;
  }
  const auto size = static_cast<int32_t>(piece.size());
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.resize(piece.size());
  // Merges that may be due, as rank << 32 | position of the left symbol; entries that are out of date stay in. The
  // first ones are sorted, later ones go to a heap, which in its turn is sorted when nothing else is left: a long run
  // of one character fills it in order and then costs no sifting.
  std::vector<uint64_t>& sorted = scratch.sorted;
  std::vector<uint64_t>& heap = scratch.heap;
  sorted.clear();
  heap.clear();
  const auto push = [&](std::vector<uint64_t>& queue, int32_t left, int32_t right) {
    const uint32_t rank = rank_of(symbols[static_cast<size_t>(left)].id, symbols[static_cast<size_t>(right)].id);
    if (rank != kNone) queue.push_back(uint64_t{rank} << 32 | static_cast<uint32_t>(left));
    return rank != kNone;
  };
  for (int32_t i = 0; i < size; ++i) {
    symbols[static_cast<size_t>(i)] = {id_of(static_cast<size_t>(i)), i - 1, i + 1 < size ? i + 1 : -1};
    if (i > 0) push(sorted, i - 1, i);
  }
  std::sort(sorted.begin(), sorted.end());
  for (size_t taken = 0;;) {
    if (taken == sorted.size()) {
      if (heap.empty()) break;
      sorted.swap(heap);
      heap.clear();
      taken = 0;
      if (!std::is_sorted(sorted.begin(), sorted.end())) std::sort(sorted.begin(), sorted.end());
    }
    uint64_t top = sorted[taken];
    if (!heap.empty() && heap.front() < top) {
      top = heap.front();
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.pop_back();
    } else {
      ++taken;
    }
    const auto at = static_cast<int32_t>(top & UINT32_MAX);
    Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    // As in the reference, an entry counts as current when the pair now here makes the same token, whatever its rank.
    const uint32_t rank = rank_of(left.id, right.id);
    const int32_t merged = merged_[top >> 32];
    if (rank == kNone || merged_[rank] != merged) continue;
    left.id = merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = at;
    if (left.previous >= 0 && push(heap, left.previous, at)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    if (left.next >= 0 && push(heap, at, left.next)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    out.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace saccade::text
