// Weight: the matrix of a linear layer as stored. Quantisation and sharding live here and in ops::linear; a model
// never mentions bits or ranks.
#pragma once

#include <array>

#include "tensor/tensor.h"

namespace saccade {

// A logical [N, K] matrix (y = x W^T + b) made of up to three row blocks that stay where the checkpoint has them,
// e.g. q | k | v or gate | up: fused by use, without a copy.
struct Weight {
  static constexpr int kMaxParts = 3;

  enum class Format : uint8_t {
    kDense,   // rows of F32 or BF16 elements where the checkpoint has them
    kStrips,  // on a CUDA device: one part, BF16 strips (kernels/cuda/layout.h)
  };
  // Of kStrips, whose rows are paired for fused epilogues (kernels/cuda/layout.h).
  enum class RowOrder : uint8_t { kPlain, kGateUp, kRope };

  Format format = Format::kDense;
  RowOrder order = RowOrder::kPlain;
  int parts = 0;
  std::array<Tensor, kMaxParts> data;      // [N_i, K] contiguous; kStrips: [strips, blocks, 1024]
  std::array<Tensor, kMaxParts> bias;      // [N_i] of the same dtype, or empty; in the order of the rows
  int64_t strip_rows = 0, strip_cols = 0;  // N and K of kStrips without padding

  int64_t rows() const {
    if (format == Format::kStrips) return strip_rows;
    int64_t n = 0;
    for (int i = 0; i < parts; ++i) n += data[static_cast<size_t>(i)].dim(0);
    return n;
  }
  int64_t cols() const { return format == Format::kStrips ? strip_cols : data[0].dim(1); }
  size_t bytes() const {
    size_t n = 0;
    for (size_t i = 0; i < static_cast<size_t>(parts); ++i) n += data[i].bytes() + (bias[i] ? bias[i].bytes() : 0);
    return n;
  }
};

}  // namespace saccade
