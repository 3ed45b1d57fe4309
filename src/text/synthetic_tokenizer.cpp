#include "text/synthetic_tokenizer.h"

#include <string>

#include "base/check.h"
#include "base/json.h"
#include "text/vocabulary.h"

namespace saccade {

Tokenizer synthetic_tokenizer(std::span<const std::pair<std::string_view, int32_t>> special) {
  Json vocab = Json::object();
  for (int32_t byte = 0; byte < 256; ++byte) {
    std::string symbol;
    text::append_spelled(symbol, std::string(1, static_cast<char>(byte)));
    vocab[symbol] = byte;
  }
  // tokenizer.json numbers added tokens behind all others, so every id below the last one needs a name.
  Json added = Json::array();
  int32_t next = 256;
  for (const auto& [token, id] : special) {
    CHECK(id >= next, "id {} of {} after {}", id, token, next - 1);
    while (next < id) {
      vocab[fmt::format("[{}]", next)] = next;
      ++next;
    }
    vocab[std::string(token)] = next++;
    added.push_back({{"id", id},
                     {"content", token},
                     {"special", true},
                     {"normalized", false},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false}});
  }
  const Json json = {
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  return Tokenizer::parse(json.dump(), "synthetic tokenizer");
}

}  // namespace saccade
