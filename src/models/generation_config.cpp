#include "models/generation_config.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "base/json_fields.h"

namespace saccade {
namespace {

std::optional<Json> read_if_present(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  return read_json_file(path);
}

// eos_token is a string, or an object with its content.
int32_t eos_of_tokenizer(const Json& json, int64_t vocab, const TokenId& token_id, const std::string& origin) {
  const JsonFields fields(json, origin);
  const Json* value = fields.find("eos_token");
  if (!value)
    fail("{}: missing, and neither generation_config.json nor config.json names an eos", fields.name("eos_token"));
  const std::string token =
      value->is_object() ? fields.object("eos_token").text("content", "") : fields.text("eos_token", "");
  const auto id = token_id(token);
  if (!id || *id < 0 || *id >= vocab) fields.wrong("eos_token", fmt::format("a token with an id below {}", vocab));
  return *id;
}

}  // namespace

GenerationDefaults parse_generation_config(const Json& json, int64_t vocab, const std::string& origin) {
  constexpr double kMax = 1e6, kTiny = std::numeric_limits<float>::min();
  const JsonFields fields(json, origin);
  GenerationDefaults g;
  for (const int64_t id : fields.integers("eos_token_id", 0, vocab - 1)) {
    const auto eos = static_cast<int32_t>(id);
    if (std::ranges::find(g.eos_ids, eos) == g.eos_ids.end()) g.eos_ids.push_back(eos);
  }
  g.repetition_penalty = static_cast<float>(fields.number("repetition_penalty", 1, 1e-6, kMax));
  const double temperature = fields.number("temperature", 1, 0, kMax);
  const double top_p = fields.number("top_p", 1, kTiny, 1);
  const int64_t top_k = fields.integer("top_k", 50, 0, std::numeric_limits<int32_t>::max());
  if (!fields.boolean("do_sample", false)) return g;
  g.temperature = static_cast<float>(temperature);
  g.top_p = static_cast<float>(top_p);
  g.top_k = static_cast<int>(top_k);
  return g;
}

GenerationDefaults load_generation_config(const std::string& folder, const std::vector<int32_t>& config_eos,
                                          int64_t vocab, const TokenId& token_id) {
  const std::string path = folder + "/generation_config.json";
  const auto json = read_if_present(path);
  GenerationDefaults g = parse_generation_config(json ? *json : Json::object(), vocab, path);
  if (g.eos_ids.empty()) g.eos_ids = config_eos;
  if (g.eos_ids.empty()) {
    const std::string tokenizer = folder + "/tokenizer_config.json";
    const auto config = read_if_present(tokenizer);
    if (!config)
      fail(
          "{}: no end of sequence: neither generation_config.json nor config.json names eos_token_id, and there is no "
          "tokenizer_config.json",
          folder);
    g.eos_ids = {eos_of_tokenizer(*config, vocab, token_id, tokenizer)};
  }
  return g;
}

}  // namespace saccade
