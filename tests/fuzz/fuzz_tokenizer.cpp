// First byte: 0 mod 3, the rest is a tokenizer.json; 1 mod 3, text (and ids) for a small tokenizer; 2 mod 3, a regular
// expression, a zero byte and text.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "text/unicode.h"
#include "text/vocabulary.h"

namespace {

using saccade::Tokenizer;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

nlohmann::json small_tokenizer() {
  nlohmann::json vocab = nlohmann::json::object(), merges = nlohmann::json::array();
  const auto spelled = [](std::string_view bytes) {
    std::string out;
    saccade::text::append_spelled(out, bytes);
    return out;
  };
  int id = 0;
  for (int b = 0; b < 256; ++b) vocab[spelled(std::string(1, static_cast<char>(b)))] = id++;
  for (const auto& [left, right] : {std::pair{"a", "b"},
                                    {" ", "a"},
                                    {"b", "a"},
                                    {"ab", "a"},
                                    {"a", "a"},
                                    {"aa", "aa"},
                                    {" ", " "},
                                    {"  ", "  "},
                                    {"\n", "\n"},
                                    {"\xC3", "\xA9"},
                                    {"\xCC", "\x81"}}) {
    vocab[spelled(std::string(left) + right)] = id++;
    merges.push_back({spelled(left), spelled(right)});
  }
  const std::string pattern =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  nlohmann::json file;
  file["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}};
  file["normalizer"] = {{"type", "NFC"}};
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["added_tokens"] = {
      {{"id", id}, {"content", "<|a|>"}, {"special", true}, {"normalized", false}},
      {{"id", id + 1}, {"content", "<|ab"}, {"special", false}, {"lstrip", true}, {"rstrip", true}}};
  return file;
}

// What holds of any tokenizer.
void check_streaming(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  saccade::Detokenizer stream(tokenizer, false);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    require(saccade::text::is_valid_utf8(piece), "a piece of streamed text is not UTF-8");
    text += piece;
  }
  text += stream.finish();
  require(text == tokenizer.decode(ids, false), "streamed text differs from decode()");
}

void fuzz_file(std::string_view json) {
  try {
    const Tokenizer tokenizer = Tokenizer::parse(json, "tokenizer.json");
    const std::string text = "It's a <|im_end|>\n\n  t\xC3\xA9st 123 \xF0\x9F\x91\x8D";
    for (const int32_t id : tokenizer.encode(text)) require(!tokenizer.is_special(id), "text became a special token");
    check_streaming(tokenizer, tokenizer.encode_with_special(text));
  } catch (const saccade::Error&) {
  }
}

void fuzz_text(std::string_view text) {
  static const Tokenizer tokenizer = Tokenizer::parse(small_tokenizer().dump(), "small");
  static const int32_t first_added = *tokenizer.token_id("<|a|>");
  const std::string valid = saccade::text::to_valid_utf8(text);
  require(saccade::text::is_valid_utf8(valid), "to_valid_utf8");
  const std::string normal = saccade::text::nfc(valid);
  require(saccade::text::nfc(normal) == normal, "nfc() is not idempotent");

  const auto ids = tokenizer.encode(text);
  require(tokenizer.decode(ids, false) == normal, "decode(encode(text)) differs from the normalised text");
  for (const int32_t id : ids) require(id < first_added, "text became an added token");
  require(tokenizer.encode(normal) == ids, "normalised text encodes differently");
  if (valid.find("<|a") == std::string::npos) {
    require(tokenizer.encode_with_special(text) == ids, "encode_with_special() without added tokens");
  }
  size_t cut = valid.size() / 2;
  while (cut > 0 && (static_cast<unsigned char>(valid[cut]) & 0xC0) == 0x80) --cut;
  const std::string_view whole(valid);
  require(tokenizer.encode_parts({{{whole.substr(0, cut), false}, {whole.substr(cut), false}}}) == ids,
          "encode_parts()");

  check_streaming(tokenizer, ids);
  check_streaming(tokenizer, tokenizer.encode_with_special(text));
  std::vector<int32_t> any;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    any.push_back(static_cast<unsigned char>(text[i]) + (static_cast<unsigned char>(text[i + 1]) & 1) * 128 - 1);
  }
  check_streaming(tokenizer, any);
}

void fuzz_regex(std::string_view data) {
  const size_t zero = std::min(data.find('\0'), data.size());
  const std::string pattern = saccade::text::to_valid_utf8(data.substr(0, zero));
  const std::string text = saccade::text::to_valid_utf8(data.substr(std::min(zero + 1, data.size())));
  try {
    const auto regex = saccade::text::Regex::compile(pattern, "pattern");
    std::vector<saccade::text::Span> matches;
    regex.find_all(text, matches);
    size_t done = 0;
    for (const auto& m : matches) {
      require(m.begin >= done && m.begin < m.end && m.end <= text.size(), "matches out of order");
      require(m.end == text.size() || (static_cast<unsigned char>(text[m.end]) & 0xC0) != 0x80, "a cut character");
      done = m.end;
    }
  } catch (const saccade::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 3 == 0) fuzz_file(rest);
  if (data[0] % 3 == 1) fuzz_text(rest);
  if (data[0] % 3 == 2) fuzz_regex(rest);
  return 0;
}
