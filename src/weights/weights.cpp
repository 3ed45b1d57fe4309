#include "weights/weights.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "weights/safetensors.h"

namespace saccade {
namespace {

std::optional<DType> arithmetic_dtype(std::string_view name) {
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  if (name == "F32") return DType::kF32;
  return std::nullopt;
}

DType stored_dtype(const StoredTensor& stored) {
  const auto dtype = arithmetic_dtype(stored.dtype);
  if (!dtype)
    fail("{}: tensor {}: expected dtype BF16, F16 or F32, found {}", stored.file, quoted_name(stored.name),
         quoted_name(stored.dtype));
  return *dtype;
}

// Kernels take matrices of BF16 as they are stored, whatever the arithmetic.
DType used_as(DType stored, DType arithmetic) { return stored == DType::kBF16 ? DType::kBF16 : arithmetic; }

// [rows, a, b, ...] counts as [rows, a * b * ...].
bool same_matrix(std::span<const int64_t> stored, std::span<const int64_t> wanted) {
  if (std::ranges::equal(stored, wanted)) return true;
  if (wanted.size() != 2 || stored.size() < 3 || stored[0] != wanted[0]) return false;
  int64_t cols = 1;
  for (const int64_t size : stored.subspan(1))
    if (__builtin_mul_overflow(cols, size, &cols)) return false;
  return cols == wanted[1];
}

// Values at any address, as the file has them.
template <class T>
T load(const std::byte* data, size_t i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

template <class To>
void convert(const std::byte* from, DType dtype, To* to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (dtype == DType::kF32)
      to[i] = To(load<float>(from, i));
    else if (dtype == DType::kF16)
      to[i] = To(f16_to_f32(load<uint16_t>(from, i)));
    else
      to[i] = To(static_cast<float>(load<BFloat16>(from, i)));
  }
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
    }
  }
  return row.back();
}

}  // namespace

Weights::Weights(std::unique_ptr<WeightSource> source, DType dtype,
                 std::vector<std::pair<std::string, std::string>> aliases, Memory memory)
    : source_(std::move(source)), dtype_(dtype), aliases_(std::move(aliases)) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights in {}", dtype_name(dtype));
  if (memory == Memory::kCuda) {
    CHECK(dtype == DType::kBF16, "weights in {} on a device", dtype_name(dtype));
    uploader_ = std::make_unique<Uploader>();
  }
  source_->read_ahead();
}

void Weights::report_progress(size_t total_bytes, std::function<void(double)> on_progress) {
  total_bytes_ = std::max<size_t>(1, total_bytes);
  on_progress_ = std::move(on_progress);
}

std::optional<std::string> Weights::resolve(std::string_view name) const {
  if (source_->contains(name)) return std::string(name);
  for (const auto& [canonical, other] : aliases_) {
    if (!name.starts_with(canonical)) continue;
    std::string renamed = other + std::string(name.substr(canonical.size()));
    if (source_->contains(renamed)) return renamed;
  }
  return std::nullopt;
}

bool Weights::contains(std::string_view name) const { return resolve(name).has_value(); }

std::string Weights::near_names(std::string_view name) const {
  constexpr size_t kNames = 3, kMaxLength = 256;
  std::vector<std::pair<size_t, std::string>> found;
  for (const StoredTensor& stored : source_->list())
    if (stored.name.size() <= kMaxLength)
      found.emplace_back(edit_distance(name, stored.name), quoted_name(stored.name));
  const size_t n = std::min(kNames, found.size());
  std::partial_sort(found.begin(), found.begin() + static_cast<ptrdiff_t>(n), found.end());
  std::string text;
  for (size_t i = 0; i < n; ++i) text += (i ? ", " : "") + found[i].second;
  return text.empty() ? "no tensors at all" : text;
}

StoredTensor Weights::find(const std::string& name, std::span<const int64_t> shape) {
  const auto resolved = resolve(name);
  if (!resolved)
    fail("{}: tensor {} {} is missing; nearest: {}", source_->describe(), quoted_name(name), shape_text(shape),
         near_names(name));
  StoredTensor stored = source_->find(*resolved, shape);
  if (!same_matrix(stored.shape, shape))
    fail("{}: tensor {}: expected shape {}, found {}", stored.file, quoted_name(stored.name), shape_text(shape),
         shape_text(stored.shape));
  found_bytes_ += stored.bytes;
  if (on_progress_)
    on_progress_(static_cast<double>(std::min(found_bytes_, total_bytes_)) / static_cast<double>(total_bytes_));
  return stored;
}

ConvertedBytes converted_bytes(const std::vector<StoredTensor>& tensors, DType dtype) {
  ConvertedBytes bytes;
  for (const StoredTensor& t : tensors) {
    const auto from = arithmetic_dtype(t.dtype);
    if (!from) continue;
    const DType to = used_as(*from, dtype);
    const bool aligned = reinterpret_cast<uintptr_t>(t.data) % dtype_size(to) == 0;
    if (*from == to && aligned) continue;
    bytes.stored += t.bytes;
    bytes.owned += t.bytes / dtype_size(*from) * dtype_size(to);
  }
  return bytes;
}

DType Weights::stays_as(const StoredTensor& stored) const { return used_as(stored_dtype(stored), dtype_); }

Tensor Weights::materialise(const StoredTensor& stored, std::span<const int64_t> shape, DType dtype) {
  const DType from = stored_dtype(stored);
  const bool aligned = reinterpret_cast<uintptr_t>(stored.data) % dtype_size(dtype) == 0;
  if (from == dtype && aligned) return Tensor(stored.data, dtype, shape);
  Tensor result(nullptr, dtype, shape);
  Buffer& buffer = owned_[{stored.data, dtype}];
  if (buffer.size() == 0) {
    buffer = Buffer(result.bytes());
    const auto count = static_cast<size_t>(result.numel());
    if (dtype == DType::kF32)
      convert(stored.data, from, reinterpret_cast<float*>(buffer.data()), count);
    else
      convert(stored.data, from, reinterpret_cast<BFloat16*>(buffer.data()), count);
  }
  result.data = buffer.data();
  return result;
}

Tensor Weights::tensor(const std::string& name, std::initializer_list<int64_t> shape) {
  const Tensor host = materialise(find(name, shape), shape, dtype_);
  return uploader_ ? on_device(host) : host;
}

Tensor Weights::table(const std::string& name, std::initializer_list<int64_t> shape) {
  const StoredTensor stored = find(name, shape);
  const Tensor host = materialise(stored, shape, stays_as(stored));
  return uploader_ ? on_device(host) : host;
}

Tensor Weights::on_device(const Tensor& host) {
  const Tensor t = uploader_->tensor(host);
  forget();
  return t;
}

void Weights::forget() {
  owned_.clear();
  source_->forget();
}

void Weights::finish() {
  if (!uploader_) return;
  uploader_->finish();
  forget();
}

Weight Weights::linear(std::initializer_list<Part> parts, int64_t cols, bool bias) {
  return assemble({parts.begin(), parts.size()}, cols, bias, Weight::RowOrder::kPlain, 0);
}

Weight Weights::qkv(const Part& q, const Part& k, const Part& v, int64_t head_dim, int64_t cols, bool bias) {
  return assemble(std::array{q, k, v}, cols, bias, Weight::RowOrder::kRope, head_dim);
}

Weight Weights::gate_up(const std::string& gate, const std::string& up, int64_t rows, int64_t cols, bool bias) {
  return assemble(std::array<Part, 2>{Part{gate, rows}, {up, rows}}, cols, bias, Weight::RowOrder::kGateUp, 0);
}

Weight Weights::assemble(std::span<const Part> parts, int64_t cols, bool bias, Weight::RowOrder order,
                         int64_t head_dim) {
  CHECK(!parts.empty() && parts.size() <= Weight::kMaxParts, "{} parts", parts.size());
  std::array<StoredTensor, Weight::kMaxParts> matrix, vector;
  DType dtype = DType::kBF16;
  size_t i = 0;
  for (const Part& part : parts) {
    matrix[i] = find(part.name + ".weight", std::array{part.rows, cols});
    if (bias) vector[i] = find(part.name + ".bias", std::array{part.rows});
    // One F32 among them makes all F32: nothing is rounded that F32 arithmetic could keep.
    if (stays_as(matrix[i]) == DType::kF32 || (bias && stays_as(vector[i]) == DType::kF32)) dtype = DType::kF32;
    ++i;
  }
  Weight weight;
  for (const Part& part : parts) {
    const auto p = static_cast<size_t>(weight.parts++);
    weight.data[p] = materialise(matrix[p], std::array{part.rows, cols}, dtype);
    if (bias) weight.bias[p] = materialise(vector[p], std::array{part.rows}, dtype);
  }
  if (uploader_) {
    weight = uploader_->strips({weight.data.data(), parts.size()}, {weight.bias.data(), bias ? parts.size() : 0}, order,
                               head_dim);
    forget();
  }
  return weight;
}

size_t Weights::owned_bytes() const {
  size_t total = source_->owned_bytes() + (uploader_ ? uploader_->bytes() : 0);
  for (const auto& [stored, buffer] : owned_) total += buffer.size();
  return total;
}

}  // namespace saccade
