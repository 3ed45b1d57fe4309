// A checkpoint folder: one safetensors file, or an index with its shards.
#include <sys/stat.h>

#include <map>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/mapped_file.h"
#include "weights/read_ahead.h"
#include "weights/safetensors.h"

namespace saccade {
namespace {

bool exists(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0;
}

class Checkpoint : public WeightSource {
 public:
  explicit Checkpoint(const std::string& folder) : folder_(folder) {
    const std::string single = folder + "/model.safetensors", index = folder + "/model.safetensors.index.json";
    if (exists(single)) {
      add_file(single);
    } else if (exists(index)) {
      add_shards(index);
    } else {
      fail("{}: no model.safetensors or model.safetensors.index.json{}", folder,
           exists(folder + "/pytorch_model.bin") || exists(folder + "/pytorch_model.bin.index.json")
               ? "; pickled weights (pytorch_model.bin) are not read, convert them to safetensors"
               : "");
    }
  }

  bool contains(std::string_view name) const override { return by_name_.contains(std::string(name)); }
  StoredTensor find(std::string_view name, std::span<const int64_t>) override {
    const auto it = by_name_.find(std::string(name));
    if (it == by_name_.end()) fail("{}: no tensor {}", folder_, quoted_name(name));
    return tensors_[it->second];
  }
  std::vector<StoredTensor> list() const override { return tensors_; }
  std::string describe() const override { return folder_; }
  size_t owned_bytes() const override { return 0; }
  void read_ahead() override {
    if (read_ahead_) return;
    std::vector<std::span<const std::byte>> ranges;
    for (const MappedFile& file : files_) ranges.push_back(file.bytes());
    read_ahead_.emplace(std::move(ranges));
  }

 private:
  void add_file(const std::string& path) {
    const MappedFile& file = files_.emplace_back(path);
    for (StoredTensor& tensor : parse_safetensors(file.bytes(), path)) {
      const auto [it, fresh] = by_name_.emplace(tensor.name, tensors_.size());
      if (!fresh) fail("{}: tensor {} stands in {} too", path, quoted_name(tensor.name), tensors_[it->second].file);
      tensors_.push_back(std::move(tensor));
    }
  }

  void add_shards(const std::string& index) {
    constexpr size_t kMaxIndex = size_t{256} << 20;
    const auto entries = parse_safetensors_index(read_file(index, kMaxIndex), index);
    std::map<std::string_view, std::string_view> shards;  // file, a tensor that names it
    for (const auto& [tensor, file] : entries) shards.emplace(file, tensor);
    for (const auto& [file, tensor] : shards) {
      const std::string path = fmt::format("{}/{}", folder_, file);
      if (!exists(path)) fail("{}: weight_map: {}: shard {} is missing", index, quoted_name(tensor), path);
      add_file(path);
    }
    for (const auto& [tensor, file] : entries) {
      const auto it = by_name_.find(tensor);
      const std::string path = fmt::format("{}/{}", folder_, file);
      if (it == by_name_.end()) fail("{}: weight_map: {} is not in {}", index, quoted_name(tensor), path);
      if (tensors_[it->second].file != path)
        fail("{}: weight_map: expected {} in {}, found in {}", index, quoted_name(tensor), path,
             tensors_[it->second].file);
    }
  }

  std::string folder_;
  std::vector<MappedFile> files_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  std::optional<ReadAhead> read_ahead_;  // last: stops before the files are unmapped
};

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const std::string& folder) {
  return std::make_unique<Checkpoint>(folder);
}

}  // namespace saccade
