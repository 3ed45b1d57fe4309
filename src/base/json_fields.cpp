#include "base/json_fields.h"

#include <utility>

#include "base/error.h"

namespace saccade {

std::string json_excerpt(const Json& value) {
  constexpr size_t kMaxLength = 80;
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > kMaxLength) text = text.substr(0, kMaxLength) + "...";
  return text;
}

JsonFields::JsonFields(const Json& json, std::string origin, std::string prefix)
    : json_(json), origin_(std::move(origin)), prefix_(std::move(prefix)) {
  if (json.is_object()) return;
  const std::string where = prefix_.empty() ? "" : prefix_.substr(0, prefix_.size() - 1) + ": ";
  fail("{}: {}expected a JSON object, found {}", origin_, where, json_excerpt(json));
}

const Json* JsonFields::find(const char* key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

JsonFields JsonFields::object(const char* key) const {
  static const Json kEmpty = Json::object();
  const Json* value = find(key);
  return JsonFields(value ? *value : kEmpty, origin_, prefix_ + key + ".");
}

std::optional<int64_t> JsonFields::in_range(const Json& value, int64_t low, int64_t high) const {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
  const auto n = value.get<int64_t>();
  return n < low || n > high ? std::nullopt : std::optional(n);
}

int64_t JsonFields::integer(const char* key, int64_t missing, int64_t low, int64_t high) const {
  const Json* value = find(key);
  const auto n = value ? in_range(*value, low, high) : missing;
  if (!n) wrong(key, fmt::format("an integer from {} to {}", low, high));
  return *n;
}

double JsonFields::number(const char* key, double missing, double low, double high) const {
  const Json* value = find(key);
  if (!value) return missing;
  // The negated form refuses NaN.
  if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high))
    wrong(key, fmt::format("a number from {} to {}", low, high));
  return value->get<double>();
}

bool JsonFields::boolean(const char* key, bool missing) const {
  const Json* value = find(key);
  if (value && !value->is_boolean()) wrong(key, "true or false");
  return value ? value->get<bool>() : missing;
}

std::string JsonFields::text(const char* key, const std::string& missing) const {
  const Json* value = find(key);
  if (value && !value->is_string()) wrong(key, "a string");
  return value ? value->get<std::string>() : missing;
}

std::vector<int64_t> JsonFields::integers(const char* key, int64_t low, int64_t high) const {
  const Json* value = find(key);
  std::vector<int64_t> result;
  if (!value) return result;
  const auto take = [&](const Json& element) {
    const auto n = in_range(element, low, high);
    if (!n) wrong(key, fmt::format("integers from {} to {}", low, high));
    result.push_back(*n);
  };
  if (value->is_array()) {
    for (const Json& element : *value) take(element);
  } else {
    take(*value);
  }
  return result;
}

void JsonFields::wrong(const char* key, const std::string& expected) const {
  const Json* value = find(key);
  fail("{}: expected {}, found {}", name(key), expected, value ? json_excerpt(*value) : "no value");
}

}  // namespace saccade
