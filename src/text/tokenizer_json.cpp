#include "text/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "text/unicode.h"

namespace saccade::text {
namespace {

namespace dom = simdjson::dom;

constexpr int64_t kMaxId = (1 << 20) - 1;
constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kMaxAddedTokenBytes = 512;
constexpr size_t kMaxSteps = 64;  // of the pre-tokenizer

// GPT-2's cut, which ByteLevel applies when use_regex is set.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string shown(std::string_view text) {
  constexpr size_t kShown = 40;
  size_t size = std::min(text.size(), kShown);
  while (size < text.size() && size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return fmt::format("\"{}{}\"", text.substr(0, size), size < text.size() ? "..." : "");
}

std::string_view kind_of(dom::element value) {
  switch (value.type()) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

// A JSON value and how an error names it.
struct Field {
  dom::element value;
  std::string where;

  [[noreturn]] void refuse(std::string_view expected) const {
    fail("{}: expected {}, found {}", where, expected, kind_of(value));
  }
  // Absent and null are the same.
  std::optional<Field> find(std::string_view key) const {
    dom::element found;
    if (!value.is_object()) refuse("an object");
    if (value.get_object().value_unsafe().at_key(key).get(found) || found.is_null()) return std::nullopt;
    return Field{found, fmt::format("{}.{}", where, key)};
  }
  Field at(std::string_view key) const {
    auto found = find(key);
    if (!found) fail("{}.{}: missing", where, key);
    return *std::move(found);
  }
  std::string_view string() const {
    std::string_view text;
    if (value.get(text)) refuse("a string");
    return text;
  }
  std::vector<Field> items() const {
    dom::array array;
    if (value.get(array)) refuse("an array");
    std::vector<Field> fields;
    for (const dom::element item : array) fields.push_back({item, fmt::format("{}[{}]", where, fields.size())});
    return fields;
  }
  bool flag(std::string_view key, bool otherwise) const {
    const auto found = find(key);
    if (!found) return otherwise;
    bool set = false;
    if (found->value.get(set)) found->refuse("true or false");
    return set;
  }
};

int32_t checked_id(dom::element value, const auto& where) {
  int64_t id = 0;
  if (value.get(id) || id < 0 || id > kMaxId) fail("{}: expected an id between 0 and {}", where(), kMaxId);
  return static_cast<int32_t>(id);
}

void read_vocabulary(const Field& field, TokenizerData& data) {
  dom::object object;
  if (field.value.get(object)) field.refuse("an object");
  data.vocabulary = Vocabulary(object.size());
  for (const auto [token, value] : object) {
    const auto where = [&field, token = token] { return fmt::format("{}[{}]", field.where, shown(token)); };
    const int32_t id = checked_id(value, where);
    if (token.empty() || token.size() > kMaxTokenBytes) {
      fail("{}: a token of {} bytes, expected 1 to {}", where(), token.size(), kMaxTokenBytes);
    }
    if (data.vocabulary.find(token)) fail("{}: the token occurs twice", where());
    if (data.vocabulary.has(id)) {
      fail("{}: id {} belongs to {} already", where(), id, shown(data.vocabulary.token(id)));
    }
    data.vocabulary.add(token, id, token);
  }
}

std::vector<int32_t> byte_ids(const Field& vocab, const Vocabulary& vocabulary) {
  std::vector<int32_t> ids(256, -1);
  for (int b = 0; b < 256; ++b) {
    std::string spelled;
    append_spelled(spelled, std::string(1, static_cast<char>(b)));
    const auto id = vocabulary.find(spelled);
    if (id) ids[static_cast<size_t>(b)] = *id;
    const bool in_utf8 = b < 0xC0 || (b >= 0xC2 && b <= 0xF4);
    if (!id && in_utf8)
      fail("{}: no token for byte 0x{:02X} (\"{}\"): not a byte-level vocabulary", vocab.where, b, spelled);
  }
  return ids;
}

void read_merges(const Field& field, const Field& vocab, TokenizerData& data) {
  dom::array array;
  if (field.value.get(array)) field.refuse("an array");
  const Vocabulary& vocabulary = data.vocabulary;
  // Arrays beyond 2^24 - 1 elements report that size, so count instead.
  size_t count = 0;
  for ([[maybe_unused]] const dom::element merge : array) ++count;
  data.bpe = Bpe(byte_ids(vocab, vocabulary), count);
  std::string joined;
  size_t index = 0;
  for (const dom::element merge : array) {
    const auto where = [&] { return fmt::format("{}[{}]", field.where, index); };
    std::string_view left, right;
    dom::array pair;
    if (!merge.get(left)) {
      if (left.substr(0, 8) == "#version") continue;
      const size_t space = std::min(left.find(' '), left.size());
      right = left.substr(std::min(space + 1, left.size()));
      left = left.substr(0, space);
      if (left.empty() || right.empty() || right.find(' ') != right.npos) {
        fail("{}: expected two tokens with one space between", where());
      }
    } else if (merge.get(pair) || pair.size() != 2 || pair.at(0).get(left) || pair.at(1).get(right)) {
      fail("{}: expected a string or a pair of strings", where());
    }
    joined.assign(left).append(right);
    const auto id_of = [&](std::string_view token) {
      const auto id = vocabulary.find(token);
      if (!id) fail("{}: token {} is not in {}", where(), shown(token), vocab.where);
      return *id;
    };
    const int32_t left_id = id_of(left), right_id = id_of(right);
    data.bpe.add_merge(left_id, right_id, id_of(joined));
    ++index;
  }
}

void read_model(const Field& model, TokenizerData& data) {
  if (const auto type = model.find("type"); type && type->string() != "BPE") {
    fail("{}: model {} is not supported, expected \"BPE\"", type->where, shown(type->string()));
  }
  if (const auto dropout = model.find("dropout")) {
    double p = 0;
    if (dropout->value.get(p) || p != 0) fail("{}: dropout is not supported, expected null or 0", dropout->where);
  }
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const auto affix = model.find(key); affix && !affix->string().empty()) {
      fail("{}: {} is not supported, expected none in a byte-level vocabulary", affix->where, shown(affix->string()));
    }
  }
  data.ignore_merges = model.flag("ignore_merges", false);
  const Field vocab = model.at("vocab");
  read_vocabulary(vocab, data);
  read_merges(model.at("merges"), vocab, data);
}

bool reads_nfc(const Field& normalizer) {
  const std::string_view type = normalizer.at("type").string();
  if (type == "NFC") return true;
  if (type != "Sequence") fail("{}.type: normalizer {} is not supported, expected NFC", normalizer.where, shown(type));
  bool nfc = false;
  for (const Field& part : normalizer.at("normalizers").items()) nfc = reads_nfc(part) || nfc;
  return nfc;
}

SplitStep read_split(const Field& field) {
  SplitStep step;
  const Field pattern = field.at("pattern");
  if (const auto regex = pattern.find("Regex")) {
    step.regex = Regex::compile(regex->string(), regex->where);
  } else if (const auto literal = pattern.find("String")) {
    if (literal->string().empty()) fail("{}: the pattern is empty", literal->where);
    step.regex = Regex::literal(literal->string(), literal->where);
  } else {
    fail("{}: expected Regex or String", pattern.where);
  }
  constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  const Field behavior = field.at("behavior");
  const auto* found = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                   [name = behavior.string()](const auto& b) { return b.first == name; });
  if (found == std::end(kBehaviors)) fail("{}: unknown behavior {}", behavior.where, shown(behavior.string()));
  step.behavior = found->second;
  step.invert = field.flag("invert", false);
  return step;
}

// Appends to `pre`; `closed` says that ByteLevel, which must come last and once, has been read.
void read_pre_tokenizer(const Field& field, PreTokenizer& pre, bool& closed) {
  const Field kind = field.at("type");
  const std::string_view type = kind.string();
  if (type == "Sequence") {
    for (const Field& part : field.at("pretokenizers").items()) read_pre_tokenizer(part, pre, closed);
    return;
  }
  if (closed) fail("{}: pre-tokenizer {} after ByteLevel is not supported", kind.where, shown(type));
  if (pre.steps.size() == kMaxSteps) fail("{}: more than {} steps", kind.where, kMaxSteps);
  if (type == "Split") {
    pre.steps.push_back(read_split(field));
  } else if (type == "Digits") {
    const bool individual = field.flag("individual_digits", false);
    const CodeSet digits =
        CodeSet::category("N").united(CodeSet({kDigitsBeyondN, kDigitsBeyondN + kDigitsBeyondNCount}));
    pre.steps.push_back({.regex = Regex::any_of(digits, !individual)});
  } else if (type == "ByteLevel") {
    closed = true;
    pre.add_prefix_space = field.flag("add_prefix_space", true);
    if (field.flag("use_regex", true)) {
      pre.byte_level_steps.push_back({.regex = Regex::compile(kGpt2Pattern, kind.where)});
    }
  } else {
    fail("{}: pre-tokenizer {} is not supported, expected Split, Digits, ByteLevel or Sequence", kind.where,
         shown(type));
  }
}

void check_decoder(const Field& decoder) {
  const Field type = decoder.at("type");
  if (type.string() == "ByteLevel") return;
  if (type.string() == "Sequence") {
    const auto parts = decoder.at("decoders").items();
    if (parts.size() == 1) return check_decoder(parts[0]);
  }
  fail("{}: decoder {} is not supported, expected ByteLevel", type.where, shown(type.string()));
}

void check_added_size(std::string_view content, const std::string& where) {
  if (content.empty() || content.size() > kMaxAddedTokenBytes)
    fail("{}: {} bytes, expected 1 to {}", where, content.size(), kMaxAddedTokenBytes);
}

void mark_special(TokenizerData& data, int32_t id, std::string_view content, const std::string& where) {
  if (data.bpe.makes(id)) fail("{}: special token {} can be made by merges", where, shown(content));
  data.special.resize(std::max(data.special.size(), static_cast<size_t>(id) + 1));
  data.special[static_cast<size_t>(id)] = true;
}

void read_added_tokens(const Field& field, TokenizerData& data) {
  Vocabulary& vocabulary = data.vocabulary;
  for (const Field& item : field.items()) {
    const Field content_field = item.at("content");
    const std::string content(content_field.string());
    const Field id_field = item.at("id");
    const int32_t id = checked_id(id_field.value, [&] { return id_field.where; });
    check_added_size(content, content_field.where);
    if (item.flag("single_word", false)) fail("{}.single_word: true is not supported", item.where);
    const bool special = item.flag("special", false);
    const bool normalized = item.flag("normalized", !special);
    const std::string spelled = normalized && data.normalizes ? nfc(content) : content;

    // The reference numbers new tokens itself, by the size of the vocabulary; a file that disagrees means other ids
    // there than it says.
    const auto known = vocabulary.find(content);
    const int32_t expected = known.value_or(vocabulary.count());
    if (id != expected) fail("{}: expected {} for {}, found {}", id_field.where, expected, shown(content), id);
    if (!known) {
      if (vocabulary.has(id)) {
        fail("{}: id {} belongs to {} already", id_field.where, id, shown(vocabulary.token(id)));
      }
      vocabulary.add(content, id, spelled);
    }
    if (special) mark_special(data, id, content, content_field.where);
    (normalized ? data.normalized_added : data.added)
        .add(spelled, {id, item.flag("lstrip", false), item.flag("rstrip", false)});
  }
}

}  // namespace

TokenizerData parse_tokenizer_json(std::string_view json, const std::string& origin) {
  dom::parser parser;
  Field root{{}, origin};
  auto error = parser.allocate(json.size(), kMaxJsonDepth);
  if (!error) error = parser.parse(json.data(), json.size()).get(root.value);
  if (error) fail("{}: not valid JSON: {}", origin, simdjson::error_message(error));

  TokenizerData data;
  const auto section = [&](std::string_view key) {
    auto found = root.find(key);
    if (found) found->where = fmt::format("{}: {}", origin, key);
    return found;
  };
  const auto required = [&](std::string_view key) {
    auto found = section(key);
    if (!found) fail("{}: {}: missing", origin, key);
    return *std::move(found);
  };
  read_model(required("model"), data);
  if (const auto normalizer = section("normalizer")) data.normalizes = reads_nfc(*normalizer);
  bool closed = false;
  const Field pre_tokenizer = required("pre_tokenizer");
  read_pre_tokenizer(pre_tokenizer, data.pre_tokenizer, closed);
  if (!closed) fail("{}: no ByteLevel step: not a byte-level tokenizer", pre_tokenizer.where);
  check_decoder(required("decoder"));
  if (const auto added = section("added_tokens")) read_added_tokens(*added, data);
  return data;
}

void add_special_token(TokenizerData& data, std::string_view token, const std::string& where) {
  check_added_size(token, where);
  const auto known = data.vocabulary.find(token);
  const int32_t id = known.value_or(data.vocabulary.count());
  if (!known) {
    if (id > kMaxId || data.vocabulary.has(id))
      fail("{}: no id is free for {}, the next would be {}", where, shown(token), id);
    data.vocabulary.add(token, id, token);
  }
  mark_special(data, id, token, where);
  // One that the file adds already is looked for as the file says.
  for (const AddedTokenMatcher* matcher : {&data.added, &data.normalized_added}) {
    const auto found = matcher->split(token);
    if (found.size() == 1 && found[0].id == id) return;
  }
  data.added.add(token, {.id = id});
}

}  // namespace saccade::text
