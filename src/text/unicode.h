// UTF-8 and the Unicode properties of the reference tokenizer (see tools/reference/make_unicode_tables.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace saccade::text {

struct CodeRange {
  uint32_t first, last;  // both included
};

inline constexpr uint32_t kMaxCodePoint = 0x10FFFF;
inline constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// General categories of Unicode 16, as the reference's regular expressions have them: start of run << 5 | category.
extern const uint32_t kCategoryRuns[];
extern const size_t kCategoryRunCount;
// Code points that NFC may change, reorder or join with what stands before them, and those that it may join, whole
// or decomposed, with what stands behind them. The reference's NFC is that of an old Unicode, so a newer system library
// must not see the rest.
extern const CodeRange kNfcActive[];
extern const size_t kNfcActiveCount;
extern const CodeRange kNfcHeads[];
extern const size_t kNfcHeadsCount;
// Digits in the sense of the Digits pre-tokenizer that its \p{N} lacks.
extern const CodeRange kDigitsBeyondN[];
extern const size_t kDigitsBeyondNCount;

// A set of code points: sorted ranges that neither overlap nor touch.
class CodeSet {
 public:
  CodeSet() = default;
  explicit CodeSet(std::vector<CodeRange> ranges);  // in any order
  static CodeSet of(uint32_t code) { return CodeSet({{code, code}}); }
  // General category by its short name, "L" or "Lu"; empty when there is no such category.
  static CodeSet category(std::string_view name);
  static CodeSet white_space();

  bool contains(uint32_t code) const;
  bool empty() const { return ranges_.empty(); }
  CodeSet complement() const;
  CodeSet united(const CodeSet& other) const;
  const std::vector<CodeRange>& ranges() const { return ranges_; }

 private:
  std::vector<CodeRange> ranges_;
};

enum class Utf8 { kValid, kInvalid, kIncomplete };
struct Utf8Unit {
  Utf8 status;
  size_t size;  // of the character; of the maximal invalid part; or of what is left of an unfinished character
};
// Looks at the start of `text`, which is not empty.
Utf8Unit next_unit(std::string_view text);

// Code point at `text[at]` of valid UTF-8; moves `at` behind it.
inline uint32_t next_code(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = byte(at);
  if (lead < 0x80) return at += 1, lead;
  if (lead < 0xE0) return at += 2, (lead & 0x1F) << 6 | (byte(at - 1) & 0x3F);
  if (lead < 0xF0) return at += 3, (lead & 0x0F) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
  at += 4;
  return (lead & 0x07) << 18 | (byte(at - 3) & 0x3F) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
}

void append_utf8(std::string& out, uint32_t code);
bool is_valid_utf8(std::string_view text);

// Appends the text that is complete: valid characters as they are, each maximal invalid part as one U+FFFD. Returns
// the size of the unfinished character at the end, which is left out.
size_t append_lossy(std::string& out, std::string_view bytes);
// The whole of it, an unfinished character at the end as U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

// Canonical composition of valid UTF-8.
std::string nfc(std::string text);

}  // namespace saccade::text
