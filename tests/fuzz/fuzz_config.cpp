// config.json and generation_config.json: any JSON is refused with Error or yields sizes that hold together.
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "models/deepseek_vl2/config.h"
#include "models/generation_config.h"
#include "models/qwen2_5_vl/config.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void parse_qwen2_5_vl(const saccade::Json& json) {
  using saccade::qwen2_5_vl::Config;
  const Config c = Config::parse(json, "fuzz");
  require(c.hidden == c.heads * c.head_dim() && c.heads % c.kv_heads == 0);
  require(c.vision.hidden == c.vision.heads * c.vision.head_dim() &&
          c.vision.window % (c.vision.patch * c.vision.merge) == 0);
  for (const int64_t block : c.vision.full_attention_blocks) require(block >= 0 && block < c.vision.depth);
  for (const int32_t id : c.eos_ids) require(id >= 0 && id < c.vocab);
  require(Config::parse(c.to_json(), "again").to_json() == c.to_json());
}

void parse_deepseek_vl2(const saccade::Json& json) {
  using saccade::deepseek_vl2::Config;
  const Config c = Config::parse(json, "fuzz");
  require(c.mla ? c.rope % 2 == 0 && c.latent > 0 : c.hidden == c.heads * c.head_dim() && c.heads % c.kv_heads == 0);
  require(c.head_dim() > 0 && c.value_dim() > 0 && c.kv_values() > 0);
  require(c.experts == 0 || (c.routing.top_k >= 1 && c.routing.top_k <= c.experts));
  require(std::isfinite(c.routing.scale));
  require(c.bos >= 0 && c.bos < c.vocab && c.eos >= 0 && c.eos < c.vocab);
  const auto& v = c.vision;
  require(v.hidden == v.heads * v.head_dim() && v.side() > 0 && v.ffn() > 0 && c.tile_side() > 0);
  require(!c.resolutions.empty());
  for (const auto& size : c.resolutions)
    require(size.width > 0 && size.height > 0 && size.width % v.image_size == 0 && size.height % v.image_size == 0);
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
    for (const auto& parse : {parse_generation, parse_qwen2_5_vl, parse_deepseek_vl2}) {
      try {
        parse(json);
      } catch (const saccade::Error&) {
      }
    }
  } catch (const saccade::Error&) {
  }
  return 0;
}
