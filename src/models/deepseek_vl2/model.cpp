#include "models/deepseek_vl2/model.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "base/error.h"
#include "models/deepseek_vl2/boxes.h"
#include "models/deepseek_vl2/preprocess.h"
#include "models/deepseek_vl2/prompt.h"
#include "models/deepseek_vl2/sizes.h"
#include "models/deepseek_vl2/text.h"
#include "models/deepseek_vl2/vision.h"
#include "models/generation_config.h"
#include "text/synthetic_tokenizer.h"

namespace saccade::deepseek_vl2 {
namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr const char* kArchitecture = "deepseek-vl2";
constexpr int64_t kMostTiledPictures = 2;  // of a conversation; with more, none is cut into tiles
constexpr int64_t kTilesTogether = 20;     // in the vision tower: two pictures of the most tiles

struct VisionTiles : VisionInput {
  Tiles tiles;
  int64_t count() const { return 1 + tiles.tiles.width * tiles.tiles.height; }
};

Config read_config(const ModelOptions& options) {
  if (!options.synthetic.empty()) return Config::published(options.synthetic);
  const std::string path = (fs::path(options.path) / "config.json").string();
  return Config::parse(read_json_file(path), path);
}

Tokenizer read_tokenizer(const ModelOptions& options, const Config& config) {
  if (options.synthetic.empty())
    return with_processor_tokens(Tokenizer::load((fs::path(options.path) / "tokenizer.json").string()));
  // The ids of the published small, or of tiny and base.
  constexpr int32_t kImage = 128815, kSmallImage = 100003;
  const int32_t image = config.vocab > kImage + 8 ? kImage : kSmallImage;
  constexpr std::string_view kTokens[] = {"<image>",  "<|ref|>",       "<|/ref|>", "<|det|>",
                                          "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"};
  std::vector<std::pair<std::string_view, int32_t>> tokens = {{"<｜▁pad▁｜>", image - 1}};
  for (const std::string_view token : kTokens) tokens.emplace_back(token, tokens.back().second + 1);
  return with_processor_tokens(synthetic_tokenizer(tokens));
}

ModelInfo make_info(const ModelOptions& options, const Config& config) {
  ModelInfo info;
  info.architecture = kArchitecture;
  info.name = options.synthetic.empty() ? fs::path(options.path).lexically_normal().string() : options.synthetic;
  info.parameters = parameters(config);
  info.weight_bytes_per_token = streamed_parameters(config) * static_cast<int64_t>(dtype_size(DType::kBF16));
  info.layers = static_cast<int>(config.layers);
  info.hidden = config.hidden;
  info.vocab = config.vocab;
  info.max_context = config.max_positions;
  return info;
}

KvLayout make_kv_layout(const Config& config, DType dtype) {
  return {static_cast<int>(config.layers), config.kv_values(), dtype};
}

// Of the largest picture: pictures are taken together only up to kTilesTogether.
size_t vision_workspace(const Config& config, DType dtype) {
  int64_t most = 0;
  for (const Size& size : config.resolutions)
    most = std::max(most, size.width / config.vision.image_size * (size.height / config.vision.image_size));
  return VisionTower::workspace_bytes(config, std::max(1 + most, kTilesTogether), dtype);
}

class DeepSeekModel final : public Model {
 public:
  DeepSeekModel(const ModelOptions& options, const Config& config, Tokenizer tokenizer, Weights weights)
      : config_(config),
        dtype_(options.dtype),
        tokenizer_(std::move(tokenizer)),
        weights_(std::move(weights)),
        vision_(config, weights_),
        text_(config, options.dtype, weights_),
        info_(make_info(options, config)) {
    generation_.eos_ids = {config.eos};
    if (options.synthetic.empty())
      generation_ = load_generation_config(options.path, generation_.eos_ids, config.vocab,
                                           [this](std::string_view token) { return tokenizer_.token_id(token); });
    if (tokenizer_.vocab_size() > config.vocab) {
      fail("{}: tokenizer.json with the processor's tokens has ids up to {}, config.json's vocab_size is {}",
           info_.name, tokenizer_.vocab_size() - 1, config.vocab);
    }
    info_.weight_bytes_per_token = static_cast<int64_t>(text_.bytes_per_token());
  }

  const ModelInfo& info() const override { return info_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  KvLayout kv_layout() const override { return make_kv_layout(config_, dtype_); }
  int position_axes() const override { return 1; }

  Prompt prepare(const std::vector<Message>& messages) const override {
    int64_t pictures = 0;
    for (const Message& message : messages)
      pictures += std::ranges::count(message.content, ContentPart::Type::kImage, &ContentPart::type);
    Prompt prompt;
    std::vector<int64_t> tokens;
    for (const Message& message : messages) {
      for (const ContentPart& part : message.content) {
        if (part.type == ContentPart::Type::kText) continue;
        if (part.type == ContentPart::Type::kVideo) fail("video: DeepSeek-VL2 takes pictures, not clips");
        prompt.media.push_back(prepare_picture(part, pictures <= kMostTiledPictures, prompt));
        tokens.push_back(prompt.media.back()->tokens);
      }
    }
    const auto start = Clock::now();
    build_prompt(messages, tokens, config_, tokenizer_, prompt);
    prompt.preprocess_seconds += seconds_since(start);
    return prompt;
  }

  // As many pictures at a time as make kTilesTogether tiles, one at least.
  Tensor encode(const Ctx& c, std::span<const VisionInput* const> inputs) const override {
    int64_t tokens = 0;
    for (const VisionInput* input : inputs) tokens += input->tokens;
    const Tensor all = c.arena.tensor(dtype_, {tokens, config_.hidden});
    int64_t at = 0;
    for (size_t begin = 0, end = 0; begin < inputs.size(); begin = end) {
      const auto scratch = c.arena.scope();
      int64_t tiles = 0;
      std::vector<Size> sizes;
      for (; end < inputs.size() && (sizes.empty() || tiles + tiles_of(*inputs[end]).count() <= kTilesTogether);
           ++end) {
        tiles += tiles_of(*inputs[end]).count();
        sizes.push_back(tiles_of(*inputs[end]).tiles.tiles);
      }
      const Tensor embeddings = vision_.forward(c, pixels_of(c, inputs.subspan(begin, end - begin), tiles), sizes);
      ops::copy_(c, all.slice(at, at + embeddings.dim(0)), embeddings);
      at += embeddings.dim(0);
    }
    return all;
  }

  Tensor forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const override {
    return text_.forward(c, batch, kv_layers);
  }

  std::vector<Box> boxes(std::string_view text, std::span<const Picture> pictures) const override {
    return parse_boxes(text, pictures);
  }

  size_t vision_workspace_bytes() const override { return vision_workspace(config_, dtype_); }
  size_t step_workspace_bytes(int64_t tokens) const override {
    return TextModel::workspace_bytes(config_, tokens, dtype_);
  }

 private:
  static const VisionTiles& tiles_of(const VisionInput& input) { return static_cast<const VisionTiles&>(input); }

  std::shared_ptr<const VisionTiles> prepare_picture(const ContentPart& part, bool tiling, Prompt& prompt) const {
    if (part.media.min_pixels || part.media.max_pixels)
      fail(
          "media: min_pixels and max_pixels are not for DeepSeek-VL2, whose pictures take the best of its fixed sizes");
    const std::string origin = part.path.empty() ? "image" : part.path;
    auto start = Clock::now();
    constexpr bool kUpright = false;  // the original does not turn pictures as EXIF says
    const media::Image image = part.path.empty()
                                   ? media::decode_image(std::as_bytes(std::span(part.bytes)), origin, {}, kUpright)
                                   : media::load_image(part.path, {}, kUpright);
    prompt.decode_seconds += seconds_since(start);
    start = Clock::now();
    auto input = std::make_shared<VisionTiles>();
    input->tiles = preprocess(image, config_, tiling, dtype_, origin);
    input->tokens = picture_tokens(input->tiles.tiles, config_);
    const int64_t side = config_.vision.image_size;
    prompt.pictures.push_back(
        {image.width, image.height, input->tiles.tiles.width * side, input->tiles.tiles.height * side});
    prompt.preprocess_seconds += seconds_since(start);
    return input;
  }

  // [tiles * patches, 3 * patch * patch]
  Tensor pixels_of(const Ctx& c, std::span<const VisionInput* const> inputs, int64_t tiles) const {
    if (inputs.size() == 1) return tiles_of(*inputs[0]).tiles.pixels;
    const VisionConfig& v = config_.vision;
    const Tensor pixels = c.arena.tensor(dtype_, {tiles * v.patches(), v.patch_values()});
    int64_t row = 0;
    for (const VisionInput* input : inputs) {
      const Tensor& from = tiles_of(*input).tiles.pixels;
      ops::copy_(c, pixels.slice(row, row + from.dim(0)), from);
      row += from.dim(0);
    }
    return pixels;
  }

  Config config_;
  DType dtype_;
  Tokenizer tokenizer_;
  Weights weights_;
  VisionTower vision_;
  TextModel text_;
  ModelInfo info_;
  GenerationDefaults generation_;
};

}  // namespace

std::unique_ptr<Model> load(const ModelOptions& options) {
  const Config config = read_config(options);
  if (options.on_progress) options.on_progress(0.0, "tokenizer");
  Tokenizer tokenizer = read_tokenizer(options, config);
  Weights weights(
      options.synthetic.empty() ? open_checkpoint(options.path) : synthetic_weights(options.synthetic, options.seed),
      options.dtype);
  if (options.on_progress) {
    const size_t bytes = static_cast<size_t>(parameters(config)) * dtype_size(DType::kBF16);
    weights.report_progress(bytes, [report = options.on_progress](double share) { report(share, "weights"); });
  }
  return std::make_unique<DeepSeekModel>(options, config, std::move(tokenizer), std::move(weights));
}

ModelSummary inspect(const ModelOptions& options) {
  const Config config = read_config(options);
  ModelSummary summary;
  summary.info = make_info(options, config);
  summary.kv = make_kv_layout(config, options.dtype);
  summary.config = config.to_json();
  summary.weight_bytes = static_cast<size_t>(summary.info.parameters) * dtype_size(DType::kBF16);
  if (options.synthetic.empty()) summary.describe_checkpoint(options);
  summary.vision_workspace = vision_workspace(config, options.dtype);
  summary.step_workspace = TextModel::workspace_bytes(config, 0, options.dtype);
  summary.step_workspace_per_token = TextModel::workspace_bytes(config, 1, options.dtype) - summary.step_workspace;
  return summary;
}

std::vector<std::string> synthetic_names() { return {"deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2-base"}; }

}  // namespace saccade::deepseek_vl2
