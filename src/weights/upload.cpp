#include "weights/upload.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/rows.h"

namespace saccade {
namespace {

constexpr size_t kStaging = size_t{32} << 20;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where row r of a fused matrix stands: the rule of cuda::to_strips.
int64_t place(int64_t r, int64_t group) {
  if (group == 0) return r;
  const int64_t half = group / 2, i = r % group;
  return r / group * group + cuda::paired_row(i % half, static_cast<int>(i / half));
}

}  // namespace

Uploader::Uploader() {
  for (Slot& slot : slots_) {
    slot.pinned = Buffer(kStaging, Memory::kPinned);
    slot.device = Buffer(kStaging, Memory::kCuda);
    slot.stream = device::new_stream();
  }
}

Uploader::~Uploader() { finish(); }

void Uploader::finish() {
  for (Slot& slot : slots_) {
    if (slot.stream) {
      device::synchronize(slot.stream);
      device::delete_stream(std::exchange(slot.stream, nullptr));
    }
    slot.pinned = Buffer();
    slot.device = Buffer();
  }
}

Buffer& Uploader::keep(size_t bytes) {
  bytes_ += bytes;
  return kept_.emplace_back(bytes, Memory::kCuda);
}

Tensor Uploader::tensor(const Tensor& host) {
  Tensor t = host;
  t.data = keep(host.bytes()).data();
  for (size_t done = 0; done < host.bytes();) {
    Slot& slot = slots_[next_++ % kSlots];
    const size_t n = std::min(kStaging, host.bytes() - done);
    device::synchronize(slot.stream);
    std::memcpy(slot.pinned.data(), static_cast<const std::byte*>(host.data) + done, n);
    device::copy(static_cast<std::byte*>(t.data) + done, slot.pinned.data(), n, slot.stream);
    done += n;
  }
  return t;
}

void Uploader::rows([[maybe_unused]] const Tensor& host, [[maybe_unused]] int64_t first, [[maybe_unused]] int64_t group,
                    [[maybe_unused]] const Tensor& to) {
  if constexpr (device::kCudaBuilt) {
    const auto row_bytes = static_cast<size_t>(host.dim(1)) * dtype_size(host.dtype);
    const int64_t most = static_cast<int64_t>(kStaging / row_bytes);
    CHECK(most > 0, "a row of {} bytes", row_bytes);
    for (int64_t at = 0; at < host.dim(0); at += most) {
      Slot& slot = slots_[next_++ % kSlots];
      const Tensor chunk = host.slice(at, std::min(host.dim(0), at + most));
      device::synchronize(slot.stream);
      std::memcpy(slot.pinned.data(), chunk.data, chunk.bytes());
      device::copy(slot.device.data(), slot.pinned.data(), chunk.bytes(), slot.stream);
      const Tensor staged(slot.device.data(), chunk.dtype, {chunk.dim(0), chunk.dim(1)});
      cuda::to_strips(slot.stream, staged, first + at, group, to);
    }
  }
}

Weight Uploader::strips(std::span<const Tensor> parts, std::span<const Tensor> biases, Weight::RowOrder order,
                        int64_t head_dim) {
  const int64_t cols = parts[0].dim(1);
  const bool gate_up = order == Weight::RowOrder::kGateUp, rope = order == Weight::RowOrder::kRope;
  CHECK(!gate_up || (parts.size() == 2 && parts[0].dim(0) == parts[1].dim(0)), "gate and up of different sizes");
  CHECK(!rope || (parts.size() == 3 && head_dim % cuda::kStripRows == 0), "heads of {} rows", head_dim);

  Weight w;
  w.format = Weight::Format::kStrips;
  w.order = order;
  w.parts = 1;
  w.strip_cols = cols;
  std::vector<int64_t> first;
  for (const Tensor& part : parts) {
    first.push_back(w.strip_rows);
    w.strip_rows += gate_up ? round_up(part.dim(0), cuda::kBlockCols) : part.dim(0);
  }
  const int64_t strips = cuda::strips_of(w.strip_rows), blocks = cuda::blocks_of(cols);
  const auto bytes = static_cast<size_t>(strips * blocks) * cuda::kBlockBytes;
  const auto group = [&](size_t part) { return gate_up ? w.strip_rows : rope && part < 2 ? head_dim : 0; };

  w.data[0] = Tensor(keep(bytes).data(), DType::kBF16, {strips, blocks, cuda::kBlockElements});
  int64_t filled = 0;
  for (const Tensor& part : parts) filled += part.dim(0);
  if (filled < strips * cuda::kStripRows || cols % cuda::kBlockCols != 0) {
    device::fill_zero(w.data[0].data, bytes, slots_[0].stream);
    device::synchronize(slots_[0].stream);
  }
  for (size_t i = 0; i < parts.size(); ++i) rows(parts[i], first[i], group(i), w.data[0]);

  if (!biases.empty()) {
    std::vector<BFloat16> joined(static_cast<size_t>(w.strip_rows), BFloat16(0.0f));
    for (size_t i = 0; i < biases.size(); ++i)
      for (int64_t r = 0; r < biases[i].dim(0); ++r)
        joined[static_cast<size_t>(place(first[i] + r, group(i)))] = biases[i].as<BFloat16>()[r];
    w.bias[0] = tensor(Tensor(joined.data(), DType::kBF16, {w.strip_rows}));
  }
  return w;
}

}  // namespace saccade
