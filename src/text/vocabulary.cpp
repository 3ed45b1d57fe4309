#include "text/vocabulary.h"

#include <array>
#include <bit>
#include <functional>
#include <utility>

#include "text/unicode.h"

namespace saccade::text {
namespace {

// Printable Latin-1 stands for itself, the other 68 bytes for U+0100 onward in order.
struct Alphabet {
  std::array<uint16_t, 256> code_of{};
  std::array<int16_t, 0x180> byte_of{};

  Alphabet() {
    byte_of.fill(-1);
    uint16_t next = 0x100;
    for (uint16_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
      code_of[b] = printable ? b : next++;
      byte_of[code_of[b]] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet kAlphabet;

uint32_t hash_of(std::string_view token) { return static_cast<uint32_t>(std::hash<std::string_view>()(token)); }

}  // namespace

void append_spelled(std::string& out, std::string_view bytes) {
  for (const char c : bytes) append_utf8(out, kAlphabet.code_of[static_cast<unsigned char>(c)]);
}

std::string bytes_of_spelled(std::string_view token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const uint32_t code = next_code(token, at);
    if (code >= kAlphabet.byte_of.size() || kAlphabet.byte_of[code] < 0) return std::string(token);
    bytes += static_cast<char>(kAlphabet.byte_of[code]);
  }
  return bytes;
}

Vocabulary::Vocabulary(size_t count_hint) { rehash(std::bit_ceil(count_hint + count_hint / 2 + 4)); }

size_t Vocabulary::slot_of(std::string_view wanted, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].hash != hash || token(slots_[slot].id) != wanted)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Vocabulary::rehash(size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& s : old) {
    if (s.id >= 0) slots_[slot_of(token(s.id), s.hash)] = s;
  }
}

void Vocabulary::add(std::string_view token, int32_t id, std::string_view decoded) {
  if ((count_ + 1) * 3 > slots_.size() * 2) rehash(slots_.size() * 2);
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  const std::string bytes = bytes_of_spelled(decoded);
  const uint32_t hash = hash_of(token);
  slots_[slot_of(token, hash)] = {hash, id};
  entries_[static_cast<size_t>(id)] = {static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(token.size()),
                                       static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(bytes.size()), true};
  text_ += token;
  bytes_ += bytes;
  ++count_;
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  const Slot& slot = slots_[slot_of(token, hash_of(token))];
  return slot.id < 0 ? std::nullopt : std::optional(slot.id);
}

std::string_view Vocabulary::token(int32_t id) const {
  if (!has(id)) return {};
  const Entry& e = entries_[static_cast<size_t>(id)];
  return std::string_view(text_).substr(e.token_at, e.token_size);
}

std::string_view Vocabulary::bytes(int32_t id) const {
  if (!has(id)) return {};
  const Entry& e = entries_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(e.bytes_at, e.bytes_size);
}

}  // namespace saccade::text
