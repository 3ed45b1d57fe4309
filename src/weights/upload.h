// Uploader: matrices and vectors of a checkpoint to a CUDA device, in the layouts of its kernels.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "tensor/arena.h"
#include "tensor/weight.h"

namespace saccade {

// Reads host memory through pinned staging, so a mapped file goes to the device at the speed of the disk. Not
// thread-safe. What it returns lives as long as it does. Throws Error when the device's memory is exhausted.
class Uploader {
 public:
  Uploader();
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // As it is.
  Tensor tensor(const Tensor& host);

  // BF16 row blocks [N_i, K] of one matrix, with biases or none, as strips (kernels/cuda/layout.h). kGateUp: two parts
  // alike, each padded to a multiple of 64 rows; kRope: the first two are heads of `head_dim` rows, the third is plain.
  Weight strips(std::span<const Tensor> parts, std::span<const Tensor> biases, Weight::RowOrder order,
                int64_t head_dim);

  // Waits for the copies and lets the staging memory go; what was passed in is not read any more.
  void finish();

  size_t bytes() const { return bytes_; }

 private:
  Buffer& keep(size_t bytes);
  void rows(const Tensor& host, int64_t first, int64_t group, const Tensor& to);

  static constexpr int kSlots = 2;
  struct Slot {
    Buffer pinned, device;
    Stream stream = nullptr;
  };
  std::array<Slot, kSlots> slots_;
  size_t next_ = 0;
  std::vector<Buffer> kept_;
  size_t bytes_ = 0;
};

}  // namespace saccade
