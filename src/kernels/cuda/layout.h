// Memory layouts that CUDA kernels share: matrices in strips, and pages of the KV cache.
//
// Both are made of rows of 64 bf16 values (128 bytes), eight 16-byte chunks each, where row r keeps chunk j at place
// j ^ (r & 7). That is the 128-byte swizzle of Hopper's matrix instructions (PTX ISA, "Swizzling modes"), so a plain
// bulk copy brings a tile that wgmma can read, and ldmatrix reads it without bank conflicts.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SACCADE_HOST_DEVICE __host__ __device__
#else
#define SACCADE_HOST_DEVICE
#endif

namespace saccade::cuda {

// A matrix W [N,K] (y = x W^T) is stored as strips of 16 rows; a strip is contiguous: its blocks of 16 rows x 64
// columns (2 KiB) follow each other along K. N is padded to a multiple of 16, K to one of 64, with zeros. A CTA that
// owns rows streams contiguous bytes; a tile of 128 rows x 64 columns is eight bulk copies.
inline constexpr int kStripRows = 16;
inline constexpr int kBlockCols = 64;
inline constexpr int kBlockElements = kStripRows * kBlockCols;
inline constexpr int kBlockBytes = 2 * kBlockElements;

SACCADE_HOST_DEVICE constexpr int64_t strips_of(int64_t n) { return (n + kStripRows - 1) / kStripRows; }
SACCADE_HOST_DEVICE constexpr int64_t blocks_of(int64_t k) { return (k + kBlockCols - 1) / kBlockCols; }

// Element (row, column) of a swizzled tile whose rows are 64 values.
template <class Int>
SACCADE_HOST_DEVICE constexpr Int swizzled(Int row, Int column) {
  return row * kBlockCols + ((column / 8) ^ (row % 8)) * 8 + column % 8;
}
// Element (n, k) of a matrix of `blocks` = blocks_of(K).
SACCADE_HOST_DEVICE constexpr int64_t strip_offset(int64_t n, int64_t k, int64_t blocks) {
  return (n / kStripRows * blocks + k / kBlockCols) * kBlockElements + swizzled(n % kStripRows, k % kBlockCols);
}

// Row orders of fused matrices: two rows that an epilogue needs together stand 8 rows apart in one strip, so that they
// are in one thread of every kind of mma. Pairs are (gate i, up i), or (i, i + Dh/2) inside a query or key head.
// Row i of the first half and row i of the second half of a group stand at paired_row(i, 0) and paired_row(i, 1).
SACCADE_HOST_DEVICE constexpr int64_t paired_row(int64_t i, int half) { return i / 8 * 16 + half * 8 + i % 8; }

// A page of the KV cache holds 64 tokens: [k|v][K heads][Dh/64][64 tokens][64 values], the last two dimensions
// swizzled; Dh is a multiple of 64. Keys (and queries) have their values in paired order, which scores do not notice;
// values are in plain order.
inline constexpr int kKvPageTokens = 64;

// Element (token, place) of the 64 x Dh block of one head.
SACCADE_HOST_DEVICE constexpr int64_t kv_offset(int64_t token, int64_t place) {
  return place / kBlockCols * (kKvPageTokens * kBlockCols) + swizzled(token, place % kBlockCols);
}

}  // namespace saccade::cuda
