#include "models/qwen2_5_vl/model.h"

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/parallel.h"
#include "models/generation_config.h"
#include "models/qwen2_5_vl/boxes.h"
#include "models/qwen2_5_vl/device_patches.h"
#include "models/qwen2_5_vl/preprocess.h"
#include "models/qwen2_5_vl/prompt.h"
#include "models/qwen2_5_vl/sizes.h"
#include "models/qwen2_5_vl/text.h"
#include "models/qwen2_5_vl/vision.h"
#include "text/synthetic_tokenizer.h"

namespace saccade::qwen2_5_vl {
namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr const char* kArchitecture = "qwen2.5-vl";
constexpr double kMaxPosition = 1 << 30;  // of the time axis of a clip

// Patches; or on a CUDA device the decoded frames, from which it makes them.
struct VisionPatches : VisionInput {
  Patches patches;
  Picture picture;
  std::vector<media::Image> frames;
  Size size;

  void keep(std::vector<media::Image> decoded, Size to, const PreprocessConfig& config) {
    const auto temporal = static_cast<size_t>(config.temporal_patch);
    frames = std::move(decoded);
    size = to;
    patches.grid_t = static_cast<int64_t>((frames.size() + temporal - 1) / temporal);
    patches.grid_h = to.height / config.patch;
    patches.grid_w = to.width / config.patch;
  }
};

// Checkpoints name tensors in two layouts: the published one, and the one with model.language_model and model.visual.
std::vector<std::pair<std::string, std::string>> name_aliases() {
  return {{"model.", "model.language_model."}, {"visual.", "model.visual."}};
}

Config read_config(const ModelOptions& options) {
  if (!options.synthetic.empty()) return Config::published(options.synthetic);
  const std::string path = (fs::path(options.path) / "config.json").string();
  return Config::parse(read_json_file(path), path);
}

PreprocessConfig read_preprocess_config(const ModelOptions& options) {
  if (!options.synthetic.empty()) return {};
  const auto path = fs::path(options.path) / "preprocessor_config.json";
  if (!fs::exists(path)) return {};
  return PreprocessConfig::parse(read_json_file(path.string()), path.string());
}

// The published special tokens, which keep their ids.
Tokenizer published_tokens(const Config& config) {
  constexpr std::string_view kSpecial[] = {
      "<|endoftext|>",  "<|im_start|>",   "<|im_end|>",     "<|object_ref_start|>", "<|object_ref_end|>",
      "<|box_start|>",  "<|box_end|>",    "<|quad_start|>", "<|quad_end|>",         "<|vision_start|>",
      "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",  "<|video_pad|>"};
  std::vector<std::pair<std::string_view, int32_t>> tokens;
  int32_t id = config.vision_start - 9;
  for (const std::string_view token : kSpecial) tokens.emplace_back(token, id++);
  return synthetic_tokenizer(tokens);
}

std::string model_name(const ModelOptions& options) {
  if (!options.synthetic.empty()) return options.synthetic;
  return fs::path(options.path).lexically_normal().string();
}

ModelInfo make_info(const ModelOptions& options, const Config& config) {
  ModelInfo info;
  info.architecture = kArchitecture;
  info.name = model_name(options);
  info.parameters = parameters(config);
  info.weight_bytes_per_token = streamed_parameters(config) * static_cast<int64_t>(dtype_size(DType::kBF16));
  info.layers = static_cast<int>(config.layers);
  info.hidden = config.hidden;
  info.vocab = config.vocab;
  info.max_context = config.max_positions;
  return info;
}

KvLayout make_kv_layout(const Config& config, DType dtype) {
  return {static_cast<int>(config.layers), 2 * config.kv_heads * config.head_dim(), dtype};
}

class QwenModel final : public Model {
 public:
  QwenModel(const ModelOptions& options, const Config& config, Tokenizer tokenizer, Weights weights)
      : config_(config),
        dtype_(options.dtype),
        on_device_(options.memory == Memory::kCuda),
        preprocess_(read_preprocess_config(options)),
        tokenizer_(std::move(tokenizer)),
        weights_(std::move(weights)),
        vision_(config.vision, weights_),
        text_(config, options.dtype, weights_),
        info_(make_info(options, config)) {
    if (options.synthetic.empty()) {
      chat_ = ChatFormat::read(options.path, tokenizer_);
      generation_ = load_generation_config(options.path, config.eos_ids, config.vocab,
                                           [this](std::string_view token) { return tokenizer_.token_id(token); });
    } else {
      chat_ = ChatFormat::published(tokenizer_);
      generation_.eos_ids = {chat_.im_end};
    }
    if (tokenizer_.vocab_size() > config.vocab) {
      fail("{}: tokenizer.json has ids up to {}, config.json's vocab_size is {}", info_.name,
           tokenizer_.vocab_size() - 1, config.vocab);
    }
    check_token("<|vision_start|>", config.vision_start);
    check_token("<|vision_end|>", config.vision_end);
    check_token("<|image_pad|>", config.image_token);
    check_token("<|video_pad|>", config.video_token);
    info_.weight_bytes_per_token = static_cast<int64_t>(text_.bytes_per_token());
    weights_.finish();
  }

  const ModelInfo& info() const override { return info_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  KvLayout kv_layout() const override { return make_kv_layout(config_, dtype_); }
  int position_axes() const override { return 3; }

  Prompt prepare(const std::vector<Message>& messages) const override {
    std::vector<const ContentPart*> parts;
    for (const Message& message : messages)
      for (const ContentPart& part : message.content)
        if (part.type != ContentPart::Type::kText) parts.push_back(&part);

    Prompt prompt;
    auto start = Clock::now();
    std::vector<Decoded> decoded(parts.size());
    parallel_pieces(parts.size(), [&](size_t i) { decoded[i] = decode(*parts[i]); });
    prompt.decode_seconds = parts.empty() ? 0 : seconds_since(start);

    start = Clock::now();
    std::vector<std::shared_ptr<VisionPatches>> inputs(parts.size());
    parallel_pieces(parts.size(), [&](size_t i) { inputs[i] = preprocess(*parts[i], std::move(decoded[i])); });
    std::vector<MediaGrid> grids;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Patches& p = inputs[i]->patches;
      const bool video = parts[i]->type == ContentPart::Type::kVideo;
      grids.push_back(
          {video, p.grid_t, p.grid_h / config_.vision.merge, p.grid_w / config_.vision.merge, p.second_per_grid});
      inputs[i]->tokens = grids.back().tokens();
      if (!video) prompt.pictures.push_back(inputs[i]->picture);
      prompt.media.push_back(std::move(inputs[i]));
    }
    build_prompt(messages, grids, config_, chat_, tokenizer_, prompt);
    prompt.preprocess_seconds = seconds_since(start);
    return prompt;
  }

  Tensor encode(const Ctx& c, std::span<const VisionInput* const> inputs) const override {
    int64_t tokens = 0;
    for (const VisionInput* input : inputs) tokens += input->tokens;
    const Tensor all = c.arena.tensor(dtype_, {tokens, config_.hidden});
    int64_t at = 0;
    for (size_t i = 0; i < inputs.size();) {
      // Together, as long as they need no more memory than one picture may.
      std::vector<const VisionPatches*> group;
      std::vector<VisionGrid> grids;
      int64_t patches = 0;
      for (; i < inputs.size(); ++i) {
        const auto* media = static_cast<const VisionPatches*>(inputs[i]);
        const VisionGrid grid = {media->patches.grid_t, media->patches.grid_h, media->patches.grid_w};
        if (!group.empty() && patches + grid.patches() > most_patches()) break;
        patches += grid.patches();
        group.push_back(media);
        grids.push_back(grid);
      }
      const auto scratch = c.arena.scope();
      const Tensor embeddings = vision_.forward(c, pixels_of(c, group, patches), grids);
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

  size_t vision_workspace_bytes() const override {
    return VisionTower::workspace_bytes(config_.vision, most_patches(), dtype_);
  }
  size_t step_workspace_bytes(int64_t tokens) const override {
    return TextModel::workspace_bytes(config_, tokens, dtype_);
  }

 private:
  // Patches of the largest picture.
  int64_t most_patches() const { return preprocess_.max_pixels / (config_.vision.patch * config_.vision.patch); }

  // [patches, 3*2*14*14] of all of them.
  Tensor pixels_of(const Ctx& c, std::span<const VisionPatches* const> group, int64_t patches) const {
    Tensor all;
    int64_t at = 0;
    for (const VisionPatches* media : group) {
      const Tensor pixels =
          on_device_ ? patches_on_device(c, media->frames, media->size, preprocess_) : media->patches.pixels;
      if (group.size() == 1) return pixels;
      if (!all) all = c.arena.tensor(pixels.dtype, {patches, pixels.dim(1)});
      ops::copy_(c, all.slice(at, at + pixels.dim(0)), pixels);
      at += pixels.dim(0);
    }
    return all;
  }

  void check_token(const char* token, int32_t expected) const {
    const auto id = tokenizer_.token_id(token);
    if (id != expected) {
      fail("{}: token {} has id {} in tokenizer.json, config.json says {}", info_.name, token,
           id ? std::to_string(*id) : "none", expected);
    }
  }

  PreprocessConfig limits_of(const ContentPart& part) const {
    PreprocessConfig config = preprocess_;
    const bool video = part.type == ContentPart::Type::kVideo;
    int64_t& min_pixels = video ? config.video_min_pixels : config.min_pixels;
    int64_t& max_pixels = video ? config.video_max_pixels : config.max_pixels;
    if (part.media.min_pixels) min_pixels = *part.media.min_pixels;
    if (part.media.max_pixels) max_pixels = *part.media.max_pixels;
    if (min_pixels < 1 || max_pixels < min_pixels) {
      fail("media: min_pixels {} and max_pixels {} leave no size", min_pixels, max_pixels);
    }
    return config;
  }

  // A picture is a clip of one frame without a rate.
  using Decoded = media::Video;

  static std::string origin_of(const ContentPart& part) {
    if (!part.frames.empty()) return part.frames.front();
    return part.path.empty() ? "image" : part.path;
  }

  static Decoded decode(const ContentPart& part) {
    if (part.type == ContentPart::Type::kVideo) {
      media::VideoSampling sampling;
      sampling.fps = part.media.fps;
      sampling.num_frames = part.media.num_frames;
      return part.frames.empty() ? media::load_video(part.path, sampling)
                                 : media::load_frames(part.frames, part.media.fps.value_or(2.0));
    }
    Decoded picture;
    picture.frames.push_back(part.path.empty()
                                 ? media::decode_image(std::as_bytes(std::span(part.bytes)), origin_of(part))
                                 : media::load_image(part.path));
    return picture;
  }

  std::shared_ptr<VisionPatches> preprocess(const ContentPart& part, Decoded decoded) const {
    const std::string origin = origin_of(part);
    const PreprocessConfig limits = limits_of(part);
    const bool video = part.type == ContentPart::Type::kVideo;
    auto input = std::make_shared<VisionPatches>();
    const Size size = video ? size_of(decoded, limits, origin) : size_of(decoded.frames[0], limits, origin);
    input->picture = {decoded.frames[0].width, decoded.frames[0].height, size.width, size.height};
    if (on_device_)
      input->keep(std::move(decoded.frames), size, preprocess_);
    else
      input->patches = video ? preprocess_video(decoded, limits, dtype_, origin)
                             : preprocess_image(decoded.frames[0], limits, dtype_, origin);
    if (!video) return input;
    input->patches.second_per_grid = preprocess_.temporal_patch / decoded.fps;
    const double seconds = input->patches.second_per_grid * static_cast<double>(input->patches.grid_t);
    if (!(seconds * config_.vision.tokens_per_second <= kMaxPosition)) {
      fail("{}: at {} frames per second the clip lasts {} s, more than positions can count", origin, decoded.fps,
           seconds);
    }
    return input;
  }

  Config config_;
  DType dtype_;
  bool on_device_;
  PreprocessConfig preprocess_;
  Tokenizer tokenizer_;
  Weights weights_;
  VisionTower vision_;
  TextModel text_;
  ModelInfo info_;
  ChatFormat chat_;
  GenerationDefaults generation_;
};

}  // namespace

std::unique_ptr<Model> load(const ModelOptions& options) {
  const Config config = read_config(options);
  const bool synthetic = !options.synthetic.empty();
  if (options.on_progress) options.on_progress(0.0, "tokenizer");
  Tokenizer tokenizer =
      synthetic ? published_tokens(config) : Tokenizer::load((fs::path(options.path) / "tokenizer.json").string());
  Weights weights(synthetic ? synthetic_weights(options.synthetic, options.seed) : open_checkpoint(options.path),
                  options.dtype, name_aliases(), options.memory);
  if (options.on_progress) {
    const size_t bytes = static_cast<size_t>(parameters(config)) * dtype_size(DType::kBF16);
    weights.report_progress(bytes, [report = options.on_progress](double share) { report(share, "weights"); });
  }
  return std::make_unique<QwenModel>(options, config, std::move(tokenizer), std::move(weights));
}

ModelSummary inspect(const ModelOptions& options) {
  const Config config = read_config(options);
  ModelSummary summary;
  summary.info = make_info(options, config);
  summary.kv = make_kv_layout(config, options.dtype);
  summary.config = config.to_json();
  summary.weight_bytes = static_cast<size_t>(summary.info.parameters) * dtype_size(DType::kBF16);
  if (options.synthetic.empty()) summary.describe_checkpoint(options);
  summary.cuda = options.dtype == DType::kBF16;
  summary.cuda_weight_bytes = static_cast<size_t>(summary.info.parameters) * dtype_size(DType::kBF16);
  if (config.tie_embeddings)  // rows to look up, strips to multiply
    summary.cuda_weight_bytes += static_cast<size_t>(config.vocab * config.hidden) * dtype_size(DType::kBF16);
  const PreprocessConfig preprocess = read_preprocess_config(options);
  const int64_t patches = preprocess.max_pixels / (config.vision.patch * config.vision.patch);
  summary.vision_workspace = VisionTower::workspace_bytes(config.vision, patches, options.dtype);
  summary.step_workspace_per_token = TextModel::workspace_bytes(config, 1, options.dtype);
  return summary;
}

std::vector<std::string> synthetic_names() {
  return {"qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2.5-vl-32b", "qwen2.5-vl-72b"};
}

}  // namespace saccade::qwen2_5_vl
