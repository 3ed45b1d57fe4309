// Weights of a model, asked for by name and shape. A mismatch prints the tensor, what was expected and what was found.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/arena.h"
#include "tensor/weight.h"
#include "weights/upload.h"

namespace saccade {

// A tensor as it lies in a file; `data` points into the mapping.
struct StoredTensor {
  std::string name;
  std::string dtype;  // as the file spells it: "BF16", "F16", "F32", ...
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  std::string file;
};

// Where tensors come from: a checkpoint folder or a seeded generator.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool contains(std::string_view name) const = 0;  // a generator has every tensor
  // `shape` is what the caller expects: a checkpoint reports what it has, a generator makes it.
  virtual StoredTensor find(std::string_view name, std::span<const int64_t> shape) = 0;
  virtual std::vector<StoredTensor> list() const = 0;  // empty for a generator
  virtual std::string describe() const = 0;            // folder or name, for errors
  virtual size_t owned_bytes() const = 0;              // memory of our own: not what is mapped from files
  virtual void read_ahead() {}                         // starts to read what is mapped in the background
  virtual void forget() {}                             // lets go what it made; tensors that it gave before end
};

// Of tensors that Weights of arithmetic `dtype` cannot use where they are mapped: bytes in the files, and bytes in
// memory of our own. Small tensors (norms, biases) may be converted besides.
struct ConvertedBytes {
  size_t stored = 0, owned = 0;
};
ConvertedBytes converted_bytes(const std::vector<StoredTensor>& tensors, DType dtype);

// model.safetensors, or model.safetensors.index.json with its shards, memory-mapped. Reads the headers only and checks
// them wholly; throws Error naming file, tensor and key.
std::unique_ptr<WeightSource> open_checkpoint(const std::string& folder);
// Normal(0, 0.02) for matrices and biases, 1 for norms ("norm" or "ln_q" in the name), BF16, the same for the same
// seed and tensor name on any machine and in any order.
std::unique_ptr<WeightSource> synthetic_weights(std::string name, uint64_t seed);

// Not thread-safe: used by the one thread that loads a model. What it returns lives as long as it does.
class Weights {
 public:
  // `dtype` is the arithmetic of the model (F32 or BF16). Matrices stay in the file's dtype where kernels take it
  // (BF16 always; F32 when dtype is F32); all else (F16, F32 with BF16 arithmetic, data at an odd address) is converted
  // or copied into memory owned here.
  // `aliases`: (canonical prefix, prefix some checkpoints use instead), tried in order. Starts source->read_ahead().
  // With Memory::kCuda everything is in the memory of the current device, matrices in the layout of its kernels.
  Weights(std::unique_ptr<WeightSource> source, DType dtype,
          std::vector<std::pair<std::string, std::string>> aliases = {}, Memory memory = Memory::kHost);

  // All of these throw Error: for a missing tensor with the nearest names, for another shape or dtype with both.
  bool contains(std::string_view name) const;
  // A vector or table in the model's dtype (norm weights, biases).
  Tensor tensor(const std::string& name, std::initializer_list<int64_t> shape);
  // An embedding table: like a matrix, stays as stored where possible.
  Tensor table(const std::string& name, std::initializer_list<int64_t> shape);

  struct Part {
    std::string name;  // without ".weight" / ".bias"
    int64_t rows;
  };
  // Row blocks of one logical matrix [sum rows, cols]; each part has a bias or none has. All parts and biases come in
  // one dtype. A stored convolution kernel [rows, a, b, ...] counts as [rows, a * b * ...].
  Weight linear(std::initializer_list<Part> parts, int64_t cols, bool bias);
  // Query, key and value rows of an attention whose heads of `head_dim` turn in half-split pairs.
  Weight qkv(const Part& q, const Part& k, const Part& v, int64_t head_dim, int64_t cols, bool bias);
  // Gate and up rows of a gated feed-forward, `rows` each.
  Weight gate_up(const std::string& gate, const std::string& up, int64_t rows, int64_t cols, bool bias);

  // Nothing more is asked for: on a device, lets go what of the host was needed to get there.
  void finish();

  // From now on calls back with the share of `total_bytes` that was asked for.
  void report_progress(size_t total_bytes, std::function<void(double share)> on_progress);

  size_t owned_bytes() const;  // memory of our own, of the device's too, without what is mapped from files

 private:
  Weight assemble(std::span<const Part> parts, int64_t cols, bool bias, Weight::RowOrder order, int64_t head_dim);
  Tensor on_device(const Tensor& host);
  void forget();  // of the host, what has been read into staging memory
  StoredTensor find(const std::string& name, std::span<const int64_t> shape);
  DType stays_as(const StoredTensor& stored) const;  // the dtype that a matrix is used in
  Tensor materialise(const StoredTensor& stored, std::span<const int64_t> shape, DType dtype);
  std::optional<std::string> resolve(std::string_view name) const;  // the name that the source has it by
  std::string near_names(std::string_view name) const;

  std::unique_ptr<WeightSource> source_;
  DType dtype_;
  std::vector<std::pair<std::string, std::string>> aliases_;
  size_t total_bytes_ = 0, found_bytes_ = 0;
  std::function<void(double)> on_progress_;
  std::map<std::pair<const std::byte*, DType>, Buffer> owned_;  // by stored data: a tied matrix is converted once
  std::unique_ptr<Uploader> uploader_;                          // of a device
};

}  // namespace saccade
