#include "weights/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"

namespace saccade {
namespace {

namespace json = simdjson::dom;

struct DTypeSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr DTypeSize kSizes[] = {{"BF16", 2}, {"F16", 2},     {"F32", 4},     {"F64", 8}, {"BOOL", 1},   {"U8", 1},
                                {"I8", 1},   {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2},    {"I32", 4},
                                {"U32", 4},  {"I64", 8},     {"U64", 8},     {"C64", 8}, {"F8_E8M0", 1}};

std::optional<uint64_t> element_size(std::string_view dtype) {
  for (const auto& size : kSizes)
    if (size.name == dtype) return size.bytes;
  return std::nullopt;
}

json::object parse_object(json::parser& parser, std::string_view text, const std::string& origin) {
  json::element root;
  if (const auto error = parser.parse(text.data(), text.size()).get(root))
    fail("{}: not valid JSON: {}", origin, simdjson::error_message(error));
  json::object object;
  if (root.get(object)) fail("{}: expected a JSON object", origin);
  return object;
}

// What a header says of one tensor, offsets relative to the data.
struct Entry {
  std::string_view name, dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

class EntryParser {
 public:
  EntryParser(std::string_view name, const std::string& origin) : origin_(origin) { entry_.name = name; }

  Entry parse(const json::element& value) {
    json::object object;
    if (value.get(object)) wrong("an object with dtype, shape and data_offsets", value);
    bool dtype = false, shape = false, offsets = false;
    for (const auto [key, field] : object) {
      if (key == "dtype") {
        once(dtype, key);
        if (field.get(entry_.dtype)) wrong("dtype: a string", field);
      } else if (key == "shape") {
        once(shape, key);
        parse_shape(field);
      } else if (key == "data_offsets") {
        once(offsets, key);
        parse_offsets(field);
      }
    }
    if (!dtype || !shape || !offsets) wrong("an object with dtype, shape and data_offsets", value);
    return std::move(entry_);
  }

 private:
  void parse_shape(const json::element& field) {
    json::array array;
    if (field.get(array)) wrong("shape: an array of sizes", field);
    for (const json::element element : array) {
      int64_t size = 0;
      if (element.get(size) || size < 0) wrong("shape: sizes from 0 to 2^63 - 1", element);
      entry_.shape.push_back(size);
    }
  }
  void parse_offsets(const json::element& field) {
    json::array array;
    if (field.get(array) || array.size() != 2 || array.at(0).get(entry_.begin) || array.at(1).get(entry_.end))
      wrong("data_offsets: [begin, end]", field);
  }
  void once(bool& seen, std::string_view key) const {
    if (seen) fail("{}: tensor {}: {} stands twice", origin_, quoted_name(entry_.name), key);
    seen = true;
  }
  [[noreturn]] void wrong(std::string_view expected, const json::element& found) const {
    fail("{}: tensor {}: expected {}, found {}", origin_, quoted_name(entry_.name), expected,
         quoted_name(simdjson::minify(found)));
  }

  Entry entry_;
  const std::string& origin_;
};

void check_size(const Entry& entry, const std::string& origin) {
  if (entry.begin > entry.end)
    fail("{}: tensor {}: data_offsets: begin {} lies after end {}", origin, quoted_name(entry.name), entry.begin,
         entry.end);
  const auto element = element_size(entry.dtype);
  if (!element) return;
  std::optional<uint64_t> bytes = *element;
  for (const int64_t size : entry.shape)
    if (bytes) bytes = checked_mul(*bytes, static_cast<uint64_t>(size));
  if (!bytes)
    fail("{}: tensor {}: shape {} has more elements than can be addressed", origin, quoted_name(entry.name),
         shape_text(entry.shape));
  if (*bytes != entry.end - entry.begin)
    fail("{}: tensor {}: {} {} takes {} bytes, data_offsets give {}", origin, quoted_name(entry.name), entry.dtype,
         shape_text(entry.shape), *bytes, entry.end - entry.begin);
}

// Sorted by offset, the tensors must tile the data: no gap, no overlap, nothing beyond the end, nothing left.
void check_layout(const std::vector<Entry>& entries, uint64_t data_bytes, const std::string& origin) {
  uint64_t at = 0;
  for (const Entry& entry : entries) {
    if (entry.end > data_bytes)
      fail("{}: tensor {}: data_offsets end at {}, the file has {} bytes of data", origin, quoted_name(entry.name),
           entry.end, data_bytes);
    if (entry.begin < at)
      fail("{}: tensor {}: data_offsets begin at {}, inside the tensor before it, which ends at {}", origin,
           quoted_name(entry.name), entry.begin, at);
    if (entry.begin > at)
      fail("{}: tensor {}: {} bytes before it belong to no tensor", origin, quoted_name(entry.name), entry.begin - at);
    at = entry.end;
  }
  if (at != data_bytes) fail("{}: {} bytes after the last tensor belong to no tensor", origin, data_bytes - at);
}

}  // namespace

std::string quoted_name(std::string_view name) {
  constexpr size_t kMaxLength = 160;
  std::string text = "\"";
  for (const char c : name.substr(0, kMaxLength)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      text += c;
  }
  return text + (name.size() > kMaxLength ? "...\"" : "\"");
}

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file, const std::string& origin) {
  uint64_t header = 0;
  if (file.size() < sizeof header) fail("{}: {} bytes, too short for a safetensors file", origin, file.size());
  static_assert(std::endian::native == std::endian::little);
  std::memcpy(&header, file.data(), sizeof header);
  if (header > kMaxSafetensorsHeader)
    fail("{}: header of {} bytes, more than the limit of {}", origin, header, kMaxSafetensorsHeader);
  if (header > file.size() - sizeof header)
    fail("{}: header of {} bytes does not fit into the file of {} bytes", origin, header, file.size());

  json::parser parser;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof header, header);
  const auto data = file.subspan(sizeof header + header);
  std::vector<Entry> entries;
  std::unordered_set<std::string_view> names;
  for (const auto [name, value] : parse_object(parser, text, origin)) {
    if (!names.insert(name).second) fail("{}: tensor {} stands twice in the header", origin, quoted_name(name));
    if (name == "__metadata__") continue;
    entries.push_back(EntryParser(name, origin).parse(value));
    check_size(entries.back(), origin);
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  check_layout(entries, data.size(), origin);

  std::vector<StoredTensor> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries)
    tensors.push_back({std::string(entry.name), std::string(entry.dtype), std::move(entry.shape),
                       data.data() + entry.begin, entry.end - entry.begin, origin});
  return tensors;
}

std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view text,
                                                                         const std::string& origin) {
  json::parser parser;
  json::object map;
  if (parse_object(parser, text, origin).at_key("weight_map").get(map))
    fail("{}: weight_map: expected an object of tensor names and files", origin);
  std::vector<std::pair<std::string, std::string>> result;
  result.reserve(map.size());
  std::unordered_set<std::string_view> names;
  for (const auto [name, value] : map) {
    std::string_view file;
    if (value.get(file)) fail("{}: weight_map: {}: expected a file name", origin, quoted_name(name));
    if (!names.insert(name).second) fail("{}: weight_map: {} stands twice", origin, quoted_name(name));
    // A shard lies beside its index; anything that could lead elsewhere is an attack or a mistake.
    constexpr std::string_view kSeparators("/\\\0", 3);
    if (file.empty() || file == "." || file == ".." || file.find_first_of(kSeparators) != file.npos)
      fail("{}: weight_map: {}: expected a file name without a path, found {}", origin, quoted_name(name),
           quoted_name(file));
    result.emplace_back(name, file);
  }
  return result;
}

}  // namespace saccade
