#include "engine/fake_model.h"

#include <bit>
#include <cstdlib>
#include <limits>
#include <new>

#include "base/error.h"
#include "base/json.h"

namespace saccade::testing {
namespace {

constexpr int64_t kWidth = 4;  // of embeddings and of cached values

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void put(uint64_t hash, float* out) {  // exact in float
  for (int i = 0; i < kWidth; ++i) out[i] = static_cast<float>((hash >> (16 * i)) & 0xffff);
}

struct Picture : VisionInput {
  explicit Picture(std::shared_ptr<FakeHooks> h) : hooks(std::move(h)) { ++hooks->media_alive; }
  ~Picture() override { --hooks->media_alive; }
  std::shared_ptr<FakeHooks> hooks;
  std::string seed;
};

// Byte-level BPE without merges, in the format of Hugging Face's tokenizer.json.
std::string tokenizer_json() {
  Json vocab = Json::object(), added = Json::array();
  int others = 0;
  for (int byte = 0; byte < 256; ++byte) {  // GPT-2's printable stand-ins for bytes
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : 256 + others++;
    std::string text;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xc0 | (code >> 6));
      text += static_cast<char>(0x80 | (code & 0x3f));
    }
    vocab[text] = byte;
  }
  int id = 256;
  for (const char* name : {"<|end|>", "<|eos|>", "<|eos2|>", "<|image|>"})
    added.push_back({{"id", id++},
                     {"content", name},
                     {"special", true},
                     {"normalized", false},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false}});
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return Json{{"version", "1.0"},      {"added_tokens", added},
              {"normalizer", nullptr}, {"pre_tokenizer", byte_level},
              {"decoder", byte_level}, {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
      .dump();
}

class FakeModel : public Model {
 public:
  FakeModel(std::shared_ptr<FakeHooks> hooks, int64_t max_context)
      : hooks_(std::move(hooks)), tokenizer_(Tokenizer::parse(tokenizer_json(), "fake tokenizer")) {
    info_.architecture = info_.name = "fake";
    info_.layers = 2;
    info_.hidden = kWidth;
    info_.vocab = kVocab;
    info_.max_context = max_context;
    generation_.eos_ids = {kEos, kEos2};
  }

  const ModelInfo& info() const override { return info_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  KvLayout kv_layout() const override { return {.layers = 2, .values_per_token = kWidth, .dtype = DType::kF32}; }
  int position_axes() const override { return kAxes; }
  std::vector<Box> boxes(std::string_view text, std::span<const saccade::Picture> pictures) const override {
    std::vector<Box> found;
    for (size_t at = text.find('@'); at != text.npos && !pictures.empty(); at = text.find('@', at + 1)) {
      if (text.substr(at + 1, 1) == "?") fail("boxes: question mark");
      found.push_back({std::string(text.substr(at + 1, 1)), static_cast<int>(pictures.size()) - 1, 0, 0,
                       static_cast<float>(pictures.back().width), static_cast<float>(pictures.back().height)});
    }
    return found;
  }
  size_t vision_workspace_bytes() const override { return 1 << 20; }
  size_t step_workspace_bytes(int64_t tokens) const override { return static_cast<size_t>(tokens) * 1024; }

  Prompt prepare(const std::vector<Message>& messages) const override {
    if (hooks_->on_prepare) hooks_->on_prepare();
    Prompt p;
    for (const Message& message : messages)
      for (const ContentPart& part : message.content) {
        if (part.type == ContentPart::Type::kText) {
          if (part.text == "unreadable") fail("messages: cannot be read\nsecond line");
          const auto ids = tokenizer_.encode(part.text);
          p.ids.insert(p.ids.end(), ids.begin(), ids.end());
          continue;
        }
        auto picture = std::make_shared<Picture>(hooks_);
        const size_t colon = part.bytes.find(':', 4);
        picture->tokens = std::atoi(part.bytes.c_str() + 4);
        picture->seed = part.bytes.substr(colon + 1);
        p.pictures.push_back({100, 50, 28, 28});
        p.media_at.push_back(static_cast<int64_t>(p.ids.size()));
        p.ids.insert(p.ids.end(), static_cast<size_t>(picture->tokens), kImage);
        p.media.push_back(std::move(picture));
      }
    p.ids.push_back(kEnd);
    const auto length = static_cast<int32_t>(p.ids.size());
    for (int32_t axis = 0; axis < kAxes; ++axis)
      for (int32_t t = 0; t < length; ++t) p.positions.push_back(t * (axis + 1));
    p.next_position = 2 * length;
    p.decode_seconds = 0.25;
    p.preprocess_seconds = 0.5;
    return p;
  }

  Tensor encode(const Ctx& c, std::span<const VisionInput* const> inputs) const override {
    ++hooks_->encode_calls;
    int64_t tokens = 0, row = 0;
    for (const VisionInput* input : inputs) tokens += input->tokens;
    Tensor out = c.arena.tensor(DType::kF32, {tokens, kWidth});
    for (const VisionInput* input : inputs) {
      const auto& picture = dynamic_cast<const Picture&>(*input);
      if (picture.seed == "oom") throw std::bad_alloc();
      ++hooks_->encodes;
      for (int64_t i = 0; i < picture.tokens; ++i)
        put(mix(std::hash<std::string>()(picture.seed) + static_cast<uint64_t>(i)), out.row<float>(row++));
    }
    c.tap("vision", out);
    return out;
  }

  Tensor forward(const Ctx& c, const Batch& b, const std::vector<Tensor>& kv) const override {
    if (hooks_->on_forward) hooks_->on_forward(b);
    const int64_t rows = b.ids.dim(0);
    const int32_t* ids = b.ids.as<int32_t>();
    for (int64_t row = 0; row < rows; ++row)
      if (ids[row] == '!') fail("forward: exclamation mark");

    Tensor x = c.arena.tensor(DType::kF32, {rows, kWidth});
    for (int64_t row = 0; row < rows; ++row) {
      float* v = x.row<float>(row);
      v[0] = static_cast<float>(ids[row]);
      v[1] = v[2] = v[3] = 0;
    }
    for (const Batch::Span& span : b.spans)
      for (int64_t i = 0; i < span.embeddings.dim(0); ++i) {
        CHECK(ids[span.row + i] == kImage);
        std::copy_n(span.embeddings.row<float>(i), kWidth, x.row<float>(span.row + i));
      }
    for (int64_t row = 0; row < rows; ++row) {
      if (ids[row] == kImage) continue;
      for (int axis = 0; axis < kAxes; ++axis)
        x.row<float>(row)[1 + axis] = static_cast<float>(b.positions.row<int32_t>(axis)[row]);
    }

    Tensor logits = c.arena.tensor(DType::kF32, {b.logit_rows.dim(0), kVocab});
    std::vector<uint64_t> state(static_cast<size_t>(rows));
    std::vector<int32_t> next(static_cast<size_t>(rows));
    for (int64_t i = 0; i < b.kv.kv_lens.dim(0); ++i) {
      const int64_t begin = b.kv.q_offsets.as<int32_t>()[i], end = b.kv.q_offsets.as<int32_t>()[i + 1];
      const int64_t first = b.kv.kv_lens.as<int32_t>()[i] - (end - begin);
      const auto cached = [&](size_t layer, int64_t t) {
        const int32_t page = b.kv.page_table.row<int32_t>(i)[t / kPageTokens];
        return kv[layer].row<float>(page) + t % kPageTokens * kWidth;
      };
      const auto written = [&](size_t layer, int64_t row) {
        const int32_t slot = b.kv.slots.as<int32_t>()[row];
        return kv[layer].row<float>(slot / kPageTokens) + slot % kPageTokens * kWidth;
      };
      for (int64_t row = begin; row < end; ++row) std::copy_n(x.row<float>(row), kWidth, written(0, row));
      for (size_t layer = 0; layer < 2; ++layer)
        for (int64_t row = begin; row < end; ++row) {
          uint64_t h = layer;
          for (int64_t t = 0; t <= first + row - begin; ++t)
            for (int64_t j = 0; j < kWidth; ++j) h = mix(h + std::bit_cast<uint32_t>(cached(layer, t)[j]));
          if (layer == 0) put(h, written(1, row));
          state[static_cast<size_t>(row)] = h;
        }
      std::vector<int32_t> history;
      for (int64_t t = 0; t < first + end - begin; ++t) history.push_back(static_cast<int32_t>(cached(0, t)[0]));
      const bool generates = std::find(history.begin(), history.begin() + first, kEnd) != history.begin() + first;
      CHECK(generates == (i < b.kv.decodes), "sequence {} of {} that generate", i, b.kv.decodes);
      for (int64_t row = begin; row < end; ++row)
        next[static_cast<size_t>(row)] = scripted({history.data(), static_cast<size_t>(first + row - begin + 1)});
    }
    for (int64_t r = 0; r < logits.dim(0); ++r) {
      const auto row = static_cast<size_t>(b.logit_rows.as<int32_t>()[r]);
      float* out = logits.row<float>(r);
      for (int32_t v = 0; v < kVocab; ++v) {
        const uint64_t h = mix(state[row] ^ mix(static_cast<uint64_t>(v)));
        out[v] = v < 256 && v != '!' && v != '#' ? static_cast<float>(h >> 40) * 0x1p-21f : -20;  // [0, 8)
      }
      if (next[row] >= 0) out[next[row]] = 20;
      if (b.ids.as<int32_t>()[row] == '#') out[7] = std::numeric_limits<float>::quiet_NaN();
    }
    c.tap("logits", logits);
    return logits;
  }

 private:
  // The next id of an answer that the prompt holds, or -1.
  static int32_t scripted(std::span<const int32_t> history) {
    const auto end = std::find(history.begin(), history.end(), kEnd);
    const auto bar = std::find(history.begin(), end, '|');
    if (end == history.end() || bar == end) return -1;
    const auto spoken = history.end() - end - 1;
    const int32_t id = spoken < end - bar - 1 ? bar[1 + spoken] : kEos;
    return id == '~' ? kEos2 : id == '^' ? '!' : id;
  }

  std::shared_ptr<FakeHooks> hooks_;
  Tokenizer tokenizer_;
  ModelInfo info_;
  GenerationDefaults generation_;
};

}  // namespace

std::unique_ptr<Model> fake_model(std::shared_ptr<FakeHooks> hooks, int64_t max_context) {
  return std::make_unique<FakeModel>(std::move(hooks), max_context);
}

}  // namespace saccade::testing
