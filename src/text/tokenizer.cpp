#include "text/tokenizer.h"

#include <atomic>
#include <cstring>
#include <functional>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "text/tokenizer_json.h"
#include "text/unicode.h"

namespace saccade {
namespace {

constexpr size_t kMaxFileBytes = size_t{128} << 20;
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Short pieces of recent text with their ids. One per thread, so that it needs no lock; direct-mapped, so that it
// stays small.
class PieceCache {
 public:
  struct Entry {
    uint64_t owner = 0;
    uint8_t piece_size = 0, id_count = 0;
    char piece[22] = {};
    int32_t ids[8] = {};
  };
  // The place for `piece`, whatever it holds now; null when the piece is too long to keep.
  Entry* place(std::string_view piece) {
    if (piece.size() > sizeof(Entry::piece)) return nullptr;
    return &entries_[std::hash<std::string_view>()(piece) % entries_.size()];
  }

 private:
  std::vector<Entry> entries_ = std::vector<Entry>(4096);
};

uint64_t next_owner() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

struct Tokenizer::Impl : text::TokenizerData {
  explicit Impl(text::TokenizerData data) : TokenizerData(std::move(data)) {}

  void encode_piece(std::string_view piece, text::Bpe::Scratch& scratch, std::vector<int32_t>& out) const {
    if (ignore_merges) {
      std::string spelled;
      text::append_spelled(spelled, piece);
      const auto id = vocabulary.find(spelled);
      if (id && !is_special(*id)) {
        out.push_back(*id);
        return;
      }
    }
    thread_local PieceCache cache;
    PieceCache::Entry* entry = cache.place(piece);
    if (entry && entry->owner == owner && std::string_view(entry->piece, entry->piece_size) == piece) {
      out.insert(out.end(), entry->ids, entry->ids + entry->id_count);
      return;
    }
    const size_t first = out.size();
    bpe.encode(piece, scratch, out);
    const size_t count = out.size() - first;
    if (!entry || count > std::size(entry->ids)) return;
    entry->owner = owner;
    entry->piece_size = static_cast<uint8_t>(piece.size());
    entry->id_count = static_cast<uint8_t>(count);
    std::memcpy(entry->piece, piece.data(), piece.size());
    std::memcpy(entry->ids, out.data() + first, count * sizeof(int32_t));
  }

  // Appends the ids of `pending`, valid UTF-8 without added tokens, and clears it.
  void flush(std::string& pending, std::vector<int32_t>& out) const {
    std::string ready = normalizes ? text::nfc(std::move(pending)) : std::move(pending);
    pending.clear();
    text::Bpe::Scratch scratch;
    const std::vector<text::Span> pieces = pre_tokenizer.apply(ready);
    for (const text::Span& p : pieces) {
      encode_piece(std::string_view(ready).substr(p.begin, p.end - p.begin), scratch, out);
    }
  }

  static bool contains(const std::vector<bool>& set, int32_t id) {
    return id >= 0 && static_cast<size_t>(id) < set.size() && set[static_cast<size_t>(id)];
  }
  bool is_special(int32_t id) const { return contains(special, id); }
  bool is_hidden(int32_t id) const { return is_special(id) && !contains(shown, id); }

  std::vector<bool> shown;  // by id
  const uint64_t owner = next_owner();
};

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer Tokenizer::load(const std::string& path) { return parse(read_file(path, kMaxFileBytes), path); }

Tokenizer Tokenizer::parse(std::string_view json, const std::string& origin) {
  return Tokenizer(std::make_shared<const Impl>(text::parse_tokenizer_json(json, origin)));
}

Tokenizer Tokenizer::with_added(std::span<const std::string_view> tokens) const {
  text::TokenizerData data = *impl_;
  for (const std::string_view token : tokens) text::add_special_token(data, token, "tokenizer");
  auto impl = std::make_shared<Impl>(std::move(data));
  impl->shown = impl_->shown;
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::showing(std::span<const int32_t> ids) const {
  auto impl = std::make_shared<Impl>(text::TokenizerData(*impl_));
  impl->shown = impl_->shown;
  impl->shown.resize(static_cast<size_t>(vocab_size()));
  for (const int32_t id : ids) {
    CHECK(is_special(id), "token {} is not special", id);
    impl->shown[static_cast<size_t>(id)] = true;
  }
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const { return encode_parts({{Part{text, false}}}); }

std::vector<int32_t> Tokenizer::encode_with_special(std::string_view text) const {
  return encode_parts({{Part{text, true}}});
}

std::vector<int32_t> Tokenizer::encode_parts(std::span<const Part> parts) const {
  size_t total = 0;
  for (const Part& part : parts) {
    if (part.text.size() > kMaxTextBytes - total) fail("text: more than {} bytes", kMaxTextBytes);
    total += part.text.size();
  }
  std::vector<int32_t> ids;
  std::string pending;
  const auto cut = [&](const text::AddedTokenMatcher& matcher, std::string_view text, const auto& ordinary) {
    for (const auto& segment : matcher.split(text)) {
      if (segment.id >= 0) {
        impl_->flush(pending, ids);
        ids.push_back(segment.id);
      } else {
        ordinary(text.substr(segment.span.begin, segment.span.end - segment.span.begin));
      }
    }
  };
  const auto append = [&](std::string_view text) { pending += text; };
  for (const Part& part : parts) {
    const std::string valid = text::to_valid_utf8(part.text);
    if (!part.is_template) {
      append(valid);
    } else if (impl_->normalized_added.empty()) {
      cut(impl_->added, valid, append);
    } else {
      cut(impl_->added, valid, [&](std::string_view text) {
        std::string normal(text);
        if (impl_->normalizes) normal = text::nfc(std::move(normal));
        cut(impl_->normalized_added, normal, append);
      });
    }
  }
  impl_->flush(pending, ids);
  return ids;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const { return impl_->vocabulary.find(token); }

int32_t Tokenizer::vocab_size() const { return impl_->vocabulary.size(); }

bool Tokenizer::is_special(int32_t id) const { return impl_->is_special(id); }

bool Tokenizer::is_hidden(int32_t id) const { return impl_->is_hidden(id); }

std::string_view Tokenizer::token_bytes(int32_t id) const { return impl_->vocabulary.bytes(id); }

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_hidden(id)) bytes += token_bytes(id);
  }
  return text::to_valid_utf8(bytes);
}

Detokenizer::Detokenizer(Tokenizer tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string Detokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_hidden(id)) return {};
  pending_ += tokenizer_.token_bytes(id);
  std::string out;
  const size_t unfinished = text::append_lossy(out, pending_);
  pending_.erase(0, pending_.size() - unfinished);
  return out;
}

std::string Detokenizer::finish() {
  std::string out = text::to_valid_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace saccade
