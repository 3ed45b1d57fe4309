// Tokens by id and ids by token, in the byte-level spelling of tokenizer.json and as raw bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace saccade::text {

// Byte-level spelling: every byte is one printable character, U+0021..U+017F.
void append_spelled(std::string& out, std::string_view bytes);
// Bytes that a token stands for; a token with any character outside that alphabet stands for its own UTF-8.
std::string bytes_of_spelled(std::string_view token);

class Vocabulary {
 public:
  Vocabulary() = default;
  explicit Vocabulary(size_t count_hint);

  // The token must not be there yet, nor the id (>= 0). `decoded`: the spelling that is decoded, where another.
  void add(std::string_view token, int32_t id, std::string_view decoded);

  std::optional<int32_t> find(std::string_view token) const;
  int32_t count() const { return static_cast<int32_t>(count_); }
  bool has(int32_t id) const { return id >= 0 && id < size() && entries_[static_cast<size_t>(id)].present; }
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }  // largest id + 1
  std::string_view token(int32_t id) const;                               // empty when absent
  std::string_view bytes(int32_t id) const;

 private:
  struct Entry {
    uint32_t token_at = 0, token_size = 0, bytes_at = 0, bytes_size = 0;
    bool present = false;
  };
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;  // -1: free
  };
  size_t slot_of(std::string_view token, uint32_t hash) const;
  void rehash(size_t slots);

  std::string text_;  // of all tokens
  std::string bytes_;
  std::vector<Entry> entries_;                      // by id
  std::vector<Slot> slots_ = std::vector<Slot>(4);  // open addressing, a power of two, at most 2/3 taken
  size_t count_ = 0;
};

}  // namespace saccade::text
