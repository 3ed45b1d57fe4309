// Byte-level BPE from any Hugging Face tokenizer.json of that family, and UTF-8-safe streaming back to text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace saccade {

class Tokenizer {
 public:
  // Reads tokenizer.json; throws Error naming file and key for what it does not support. Shared state: cheap to copy.
  static Tokenizer load(const std::string& path);
  static Tokenizer parse(std::string_view json, const std::string& origin);

  // A copy that also has these special tokens. Those that tokenizer.json lacks get the next free ids in this order, as
  // the reference's add_special_tokens() numbers them. Throws Error for a token that ordinary text could become.
  Tokenizer with_added(std::span<const std::string_view> tokens) const;
  // A copy that shows these special tokens in decoded text even where special tokens are skipped.
  Tokenizer showing(std::span<const int32_t> ids) const;

  // Ordinary text: never yields a special id, whatever it contains ("<|im_end|>" typed by a user is split like words).
  std::vector<int32_t> encode(std::string_view text) const;
  // A prompt in parts, cut into words as if it were one string (as the reference has it): added tokens are recognised
  // inside template parts and nowhere else.
  struct Part {
    std::string_view text;
    bool is_template = false;
  };
  std::vector<int32_t> encode_parts(std::span<const Part> parts) const;
  // As encode(), but added tokens (special ones too) written out in the text become their ids: for templates, and equal
  // to the reference's encode(add_special_tokens=False).
  std::vector<int32_t> encode_with_special(std::string_view text) const;

  std::optional<int32_t> token_id(std::string_view token) const;  // of the token as tokenizer.json spells it
  int32_t vocab_size() const;                                     // largest id + 1
  bool is_special(int32_t id) const;
  bool is_hidden(int32_t id) const;  // left out where special tokens are skipped
  // Raw bytes of a token, possibly a part of a UTF-8 character. Empty for ids that the vocabulary lacks.
  std::string_view token_bytes(int32_t id) const;
  // Whole sequence to text; invalid UTF-8 becomes U+FFFD as the reference has it.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) const;

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

// Token by token: push() returns the text that is complete so far (valid UTF-8), finish() what is left.
class Detokenizer {
 public:
  explicit Detokenizer(Tokenizer tokenizer, bool skip_special = true);
  std::string push(int32_t id);
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace saccade
