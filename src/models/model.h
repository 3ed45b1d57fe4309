// Model: what the engine knows of a model. One implementation per folder, one line each in registry.cpp.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "ops/ops.h"
#include "saccade/engine.h"
#include "saccade/request.h"
#include "text/tokenizer.h"
#include "weights/weights.h"

namespace saccade {

// A picture or clip ready for the vision tower. What is inside belongs to the model.
struct VisionInput {
  virtual ~VisionInput() = default;
  int64_t tokens = 0;  // embeddings that it becomes
};

// Sizes in pixels of a still picture: as decoded, and as the model sees it.
struct Picture {
  int64_t width = 0, height = 0, input_width = 0, input_height = 0;
};

// A request as the model sees it: ids, positions, and where the embeddings of its media go.
struct Prompt {
  std::vector<int32_t> ids;        // [T]
  std::vector<int32_t> positions;  // [axes, T] row-major; axes = Model::position_axes()
  int32_t next_position = 0;       // position of the first generated token, the same on every axis
  std::vector<std::shared_ptr<const VisionInput>> media;
  std::vector<int64_t> media_at;  // first token of each media item
  std::vector<Picture> pictures;  // of the conversation, without clips
  double decode_seconds = 0, preprocess_seconds = 0;
};

// Flattened tokens of all sequences of one step: prefill chunks and decodes together.
struct Batch {
  struct Span {         // rows of the step whose embeddings come from a vision tower
    int64_t row = 0;    // first row of the step
    Tensor embeddings;  // [n, D]
  };

  Tensor ids;        // [T] I32
  Tensor positions;  // [axes, T] I32
  PagedKv kv;
  std::vector<Span> spans;
  Tensor logit_rows;  // [R] I32: rows whose logits are wanted
};

// The paged cache of one layer is [pages, page_values]; the model gives it its inner shape.
struct KvLayout {
  int layers = 0;
  int64_t values_per_token = 0;  // per layer
  DType dtype = DType::kBF16;
};

// Values of generation_config.json; the request may override them.
struct GenerationDefaults {
  std::vector<int32_t> eos_ids;
  float temperature = 0, top_p = 1, repetition_penalty = 1;
  int top_k = 0;
};

class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelInfo& info() const = 0;
  virtual const GenerationDefaults& generation() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual KvLayout kv_layout() const = 0;
  virtual int position_axes() const = 0;

  // Tokenises and decodes media; throws Error on bad input. Thread-safe.
  virtual Prompt prepare(const std::vector<Message>& messages) const = 0;

  // Vision tower over media of any requests: -> [sum of their tokens, D] in ctx.arena, one after another. The model
  // decides how many it takes at a time.
  virtual Tensor encode(const Ctx& c, std::span<const VisionInput* const> inputs) const = 0;

  // One step: -> F32 logits [R, V] in ctx.arena. kv_layers[l] is [pages, 64 * values_per_token]. On a CUDA device the
  // sequences of a step all generate or all read their prompts.
  virtual Tensor forward(const Ctx& c, const Batch& batch, const std::vector<Tensor>& kv_layers) const = 0;

  // Boxes that an answer names, on the last of `pictures`; none without a picture. `text` may be anything, cut off
  // anywhere.
  virtual std::vector<Box> boxes(std::string_view /*text*/, std::span<const Picture> /*pictures*/) const { return {}; }

  // Bytes of arena that encode() of the largest image and forward() of `tokens` rows need, for the memory plan.
  virtual size_t vision_workspace_bytes() const = 0;
  virtual size_t step_workspace_bytes(int64_t tokens) const = 0;
};

struct ModelOptions {
  std::string path;       // checkpoint folder, or
  std::string synthetic;  // name of published shapes
  uint64_t seed = 0;
  DType dtype = DType::kBF16;
  Memory memory = Memory::kHost;  // kCuda: weights and work on the current device
  std::function<void(double fraction, std::string_view what)> on_progress;
};

// Reads config.json's architecture and builds the model. Throws Error, for an unknown architecture with the known ones.
std::unique_ptr<Model> load_model(const ModelOptions& options);

// Everything `saccade inspect` prints, from configs and headers alone.
struct ModelSummary {
  ModelInfo info;
  KvLayout kv;
  size_t weight_bytes = 0;
  bool cuda = false;             // the model runs on CUDA devices too,
  size_t cuda_weight_bytes = 0;  // where its weights take this much
  bool mapped = false;           // weights are used where the files are mapped,
  ConvertedBytes converted;      // but for these
  size_t vision_workspace = 0;
  size_t step_workspace = 0;  // of a step, beside what grows with its tokens
  size_t step_workspace_per_token = 0;
  Json config;  // parsed values, defaults filled in
  struct TensorRow {
    std::string name, dtype, file;
    std::vector<int64_t> shape;
    size_t bytes = 0;
  };
  std::vector<TensorRow> tensors;  // empty for synthetic models

  // Fills tensors and what follows from them: weight_bytes, mapped, converted. Throws Error of the checkpoint.
  void describe_checkpoint(const ModelOptions& options);
};
ModelSummary inspect_model(const ModelOptions& options);
std::vector<std::string> synthetic_names();

}  // namespace saccade
