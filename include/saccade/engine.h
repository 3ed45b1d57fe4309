// Saccade's C++ API: load a model once, then submit any number of requests from any thread.
//
//   auto engine = saccade::Engine::load({.model = "models/tiny-qwen2.5-vl"});
//   saccade::Request request;
//   request.messages = {{"user", {saccade::ContentPart::of_image_file("photo.jpg"),
//                                 saccade::ContentPart::of_text("What is this?")}}};
//   std::cout << engine->generate(request).text;
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "saccade/request.h"

namespace saccade {

struct EngineOptions {
  std::string model = {};  // folder of a Hugging Face checkpoint
  std::string synthetic =
      {};  // or the name of published shapes to fill with seeded random weights, e.g. "qwen2.5-vl-3b"
  // "cpu", "cuda", "cuda:1"; "auto": the CUDA device with the most free memory where the model fits it, else the CPU
  std::string device = "auto";
  std::string dtype = "bf16";  // arithmetic of activations: "bf16" or "f32" (CPU only)
  int threads = 0;             // 0: all cores
  int max_batch = 0;           // sequences that run at once; 0: 16 on the CPU, 64 on a CUDA device
  int max_batch_tokens = 0;    // tokens of one step: decodes first, then chunks of prefill; 0: 512 or 4096
  int max_queue = 256;         // requests waiting; beyond it submit() throws
  int64_t max_context = 0;     // tokens of one sequence; 0: the model's limit, as far as memory allows
  size_t kv_bytes = 0;         // size of the KV cache; 0: planned from max_context and memory
  uint64_t synthetic_seed = 0;
  std::function<void(double fraction, std::string_view what)> on_load_progress = {};
  // Called with every intermediate of every step, named as docs/dump.md lists them. Slow; for comparing
  // implementations. `data` is float32, row-major, valid during the call.
  std::function<void(std::string_view name, const float* data, const int64_t* shape, int rank)> on_tap = {};
};

// What the model needs, known before weights are read.
struct MemoryPlan {
  std::string device;  // "cpu", or "cuda:0 (NVIDIA H200)"
  size_t weight_bytes = 0;
  size_t kv_bytes = 0;
  size_t kv_bytes_per_token = 0;
  int64_t context_tokens = 0;         // tokens that the KV cache holds
  size_t workspace_bytes = 0;         // largest step
  size_t vision_bytes = 0;            // largest image in the vision tower
  size_t available_bytes = 0;         // memory of this machine, or of the device
  bool weights_mapped = false;        // weights are mapped from files: they need page cache, not memory of our own,
  size_t weight_bytes_owned = 0;      // but for these, converted at load (F16; F32 for bf16 arithmetic)
  size_t weight_bytes_per_token = 0;  // read for each decoded token at batch 1

  // What does not stay cached is read from disk again, up to weight_bytes_per_token for each token.
  bool weights_exceed_memory() const { return weights_mapped && weight_bytes - weight_bytes_owned > available_bytes; }
};

struct ModelInfo {
  std::string architecture;  // "qwen2.5-vl"
  std::string name;          // folder or synthetic name
  int64_t parameters = 0;
  int64_t weight_bytes_per_token = 0;  // read for each decoded token at batch 1: the floor of decoding
  int layers = 0;
  int64_t hidden = 0, vocab = 0, max_context = 0;
  double load_seconds = 0;
};

// Called on the engine's thread with each new piece of text (complete UTF-8) and its token; keep it short.
struct TokenEvent {
  std::string_view text;  // may be empty
  int32_t id = 0;
};

class Engine {
 public:
  using OnToken = std::function<void(const TokenEvent&)>;
  using OnDone = std::function<void(const Result&)>;

  // Throws saccade::Error (derived from std::runtime_error) with one line that names file and key.
  static std::unique_ptr<Engine> load(const EngineOptions& options);
  static MemoryPlan plan(const EngineOptions& options);  // reads headers and configs only

  virtual ~Engine() = default;

  // Thread-safe; returns an id for cancel(). Throws Error when the queue is full. A request that fails later ends
  // alone, with Result::finish kError. Exactly one on_done per accepted request, also on cancel and shutdown.
  virtual uint64_t submit(Request request, OnToken on_token, OnDone on_done) = 0;
  virtual void cancel(uint64_t id) = 0;

  // submit() and wait. Throws Error when the request fails.
  virtual Result generate(Request request, OnToken on_token = {}) = 0;

  virtual const ModelInfo& info() const = 0;
  virtual const MemoryPlan& memory() const = 0;
};

}  // namespace saccade
