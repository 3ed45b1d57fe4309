// config.json and generation_config.json: any JSON is refused with Error or yields sizes that hold together.
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "models/generation_config.h"
#include "models/qwen2_5_vl/config.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void parse_model(const saccade::Json& json) {
  using saccade::qwen2_5_vl::Config;
  const Config c = Config::parse(json, "fuzz");
  require(c.hidden == c.heads * c.head_dim() && c.heads % c.kv_heads == 0);
  require(c.vision.hidden == c.vision.heads * c.vision.head_dim() &&
          c.vision.window % (c.vision.patch * c.vision.merge) == 0);
  for (const int64_t block : c.vision.full_attention_blocks) require(block >= 0 && block < c.vision.depth);
  for (const int32_t id : c.eos_ids) require(id >= 0 && id < c.vocab);
  require(Config::parse(c.to_json(), "again").to_json() == c.to_json());
}

void parse_generation(const saccade::Json& json) {
  constexpr int64_t kVocab = 151936;
  const auto g = saccade::parse_generation_config(json, kVocab, "fuzz");
  require(std::isfinite(g.temperature) && g.temperature >= 0 && g.top_p > 0 && g.top_p <= 1 && g.top_k >= 0);
  require(std::isfinite(g.repetition_penalty) && g.repetition_penalty > 0);
  for (const int32_t id : g.eos_ids) require(id >= 0 && id < kVocab);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto json = saccade::parse_json(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
    try {
      parse_generation(json);
    } catch (const saccade::Error&) {
    }
    parse_model(json);
  } catch (const saccade::Error&) {
  }
  return 0;
}
