#include "text/unicode.h"

#include <simdjson.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/error.h"

namespace saccade::text {
namespace {

constexpr std::string_view kCategoryNames = "LuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCoCn";

bool in_ranges(const CodeRange* ranges, size_t count, uint32_t code) {
  const CodeRange* end = ranges + count;
  const CodeRange* it = std::lower_bound(ranges, end, code, [](const CodeRange& r, uint32_t c) { return r.last < c; });
  return it != end && it->first <= code;
}

bool nfc_active(uint32_t code) { return in_ranges(kNfcActive, kNfcActiveCount, code); }

void append_composed(std::string& out, std::string_view segment) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(segment.data()),
                                             static_cast<utf8proc_ssize_t>(segment.size()), &mapped,
                                             static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (size < 0) fail("text of {} bytes: {}", segment.size(), utf8proc_errmsg(size));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(mapped, std::free);
  out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
}

}  // namespace

CodeSet::CodeSet(std::vector<CodeRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const CodeRange& a, const CodeRange& b) { return a.first < b.first; });
  for (const CodeRange& r : ranges) {
    if (!ranges_.empty() && r.first <= ranges_.back().last + 1) {
      ranges_.back().last = std::max(ranges_.back().last, r.last);
    } else {
      ranges_.push_back(r);
    }
  }
}

CodeSet CodeSet::category(std::string_view name) {
  std::vector<CodeRange> ranges;
  if (name.empty() || name.size() > 2) return {};
  for (size_t i = 0; i < kCategoryRunCount; ++i) {
    const std::string_view found = kCategoryNames.substr((kCategoryRuns[i] & 31) * 2, 2);
    if (found.substr(0, name.size()) != name) continue;
    ranges.push_back(
        {kCategoryRuns[i] >> 5, i + 1 < kCategoryRunCount ? (kCategoryRuns[i + 1] >> 5) - 1 : kMaxCodePoint});
  }
  return CodeSet(std::move(ranges));
}

CodeSet CodeSet::white_space() { return category("Z").united(CodeSet({{0x09, 0x0D}, {0x85, 0x85}})); }

bool CodeSet::contains(uint32_t code) const { return in_ranges(ranges_.data(), ranges_.size(), code); }

CodeSet CodeSet::complement() const {
  std::vector<CodeRange> ranges;
  uint32_t next = 0;
  for (const CodeRange& r : ranges_) {
    if (r.first > next) ranges.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kMaxCodePoint) ranges.push_back({next, kMaxCodePoint});
  return CodeSet(std::move(ranges));
}

CodeSet CodeSet::united(const CodeSet& other) const {
  std::vector<CodeRange> ranges = ranges_;
  ranges.insert(ranges.end(), other.ranges_.begin(), other.ranges_.end());
  return CodeSet(std::move(ranges));
}

Utf8Unit next_unit(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8::kInvalid, 1};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte is narrower after these leads: no overlong forms, no surrogates, nothing beyond U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Utf8::kIncomplete, i};
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) return {Utf8::kInvalid, i};
  }
  return {Utf8::kValid, size};
}

void append_utf8(std::string& out, uint32_t code) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

bool is_valid_utf8(std::string_view text) { return simdjson::validate_utf8(text.data(), text.size()); }

size_t append_lossy(std::string& out, std::string_view bytes) {
  size_t done = 0;
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Unit unit = next_unit(bytes.substr(at));
    if (unit.status != Utf8::kValid) out.append(bytes, done, at - done);
    if (unit.status == Utf8::kIncomplete) return unit.size;
    at += unit.size;
    if (unit.status == Utf8::kInvalid) {
      out += kReplacement;
      done = at;
    }
  }
  out.append(bytes, done);
  return 0;
}

std::string to_valid_utf8(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string out;
  out.reserve(bytes.size());
  if (append_lossy(out, bytes) != 0) out += kReplacement;
  return out;
}

std::string nfc(std::string text) {
  // Below U+0300 (first byte 0xCC) everything is composed already.
  if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; })) return text;
  std::string out;
  size_t copied = 0, head = 0;  // head: where the character before may join in, else where this one starts
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const uint32_t code = next_code(text, at);
    if (code < 0x300 || !nfc_active(code)) {
      head = in_ranges(kNfcHeads, kNfcHeadsCount, code) ? start : at;
      continue;
    }
    // A run of active characters and the head before it compose on their own.
    while (at < text.size()) {
      size_t next = at;
      if (!nfc_active(next_code(text, next))) break;
      at = next;
    }
    out.append(text, copied, head - copied);
    append_composed(out, std::string_view(text).substr(head, at - head));
    copied = head = at;
  }
  if (copied == 0) return text;
  out.append(text, copied);
  return out;
}

}  // namespace saccade::text
