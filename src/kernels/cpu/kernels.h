// The single-threaded inner loops of one instruction set, as a table. The drivers (linear.cpp, rows.cpp,
// attention.cpp) split the work over threads and call through the table picked for this CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cpu/linear.h"
#include "tensor/dtype.h"

namespace saccade::cpu {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// out[i][j] (+)= sum over k of x[i][k] * w[j][k], for i < t, j < n.
struct MultiplyArgs {
  const void* x;     // packed by Product::pack, t rows of k values
  const void* w;     // n rows of k values, ldw elements apart
  const void* next;  // rows that will be wanted after these, to prefetch
  int64_t ldw;
  int64_t t, n, k;
  float* out;
  int64_t ldo;
  bool add;
};

// Products of one pair of types. The sum of one output is taken in an order that depends on k alone.
struct Product {
  int64_t row_step, k_step;  // packed rows and columns come in multiples of these, zero filled
  int64_t most_rows;         // of x that are multiplied at a time, a multiple of row_step
  size_t packed_size;        // bytes of a packed element
  // Packed row i is row places[i] of x; row i where null.
  void (*pack)(const void* x, int64_t ldx, const int32_t* places, int64_t t, int64_t k, void* packed);
  void (*multiply)(const MultiplyArgs& args);
  // For one row of x: what multiply() gives for all blocks of k one after another, in a single pass over w in the
  // order of memory. Null where multiply() does as well.
  void (*stream)(const MultiplyArgs& args, int64_t block_k) = nullptr;
};

inline constexpr int64_t kMaxStreamBlocks = 16;  // blocks of k that stream() takes

// Attention of rows * group queries over keys in blocks of kKeyBlock. Query (r, g) sees the keys below `keys` or, when
// causal, below visible + r. Keys are taken in spans of kKeySpan; each span gives its own (weighted values, maximum,
// sum), and spans are merged in order, so that a result does not depend on how spans are spread over threads.
inline constexpr int64_t kKeyBlock = 64;
inline constexpr int64_t kKeySpan = 512;
inline constexpr int64_t kQueryBlock = 128;  // most queries of a task

// Where tokens lie in units of elements: token j of block i at block(i) * block_stride + j * token_stride.
struct TokenPlaces {
  const int32_t* blocks;  // block(i) = blocks[i]; i where null
  int64_t block_stride, token_stride;

  int64_t block(int64_t i) const { return (blocks ? blocks[i] : i) * block_stride; }
};

struct AttendArgs {
  const void* q;  // query (r, g) at r * q_stride + g * key_dim
  int64_t q_stride, rows, group;
  const void *k, *v;  // may be the same: values that are the first of the key's
  TokenPlaces places;
  const void* k_tail;  // the last tail_dim values of the keys, where these lie apart
  TokenPlaces tail_places;
  int64_t tail_dim;
  int64_t begin, keys;  // keys [begin, keys); begin is a multiple of kKeySpan
  int64_t visible;
  bool causal;
  int64_t key_dim, value_dim;  // key_dim and tail_dim are even
  float scale;
  float* workspace;  // attend_workspace(key_dim, value_dim) floats
  float* partial;    // unmerged results [rows * group][value_dim + 2]: values, maximum, sum; or null, and
  void* y;           // result (r, g) at r * y_stride + g * value_dim
  int64_t y_stride;
  const AttendArgs* next;  // what the same thread will be asked next, to prefetch; or null
};

constexpr int64_t attend_padded(int64_t dim) { return (dim + 15) / 16 * 16; }
constexpr int64_t attend_workspace(int64_t key_dim, int64_t value_dim) {
  return (kKeyBlock + kQueryBlock) * attend_padded(key_dim) + (kKeyBlock + 2 * kQueryBlock) * attend_padded(value_dim) +
         4 * kQueryBlock;
}

template <class T>
struct TypeKernels {
  void (*rms_norm)(const T* x, const T* w, T* y, int64_t d, float eps);
  void (*layer_norm)(const T* x, const T* w, const T* b, T* y, int64_t d, float eps);
  void (*gelu)(const T* x, T* y, int64_t n);
  void (*gelu_tanh)(const T* x, T* y, int64_t n);
  void (*add)(T* x, const T* y, int64_t n);  // x += y
  void (*rope_round_each)(const T* x, const float* cos_sin, T* y, int64_t dim);
  void (*rope)(const T* x, const float* cos_sin, T* y, int64_t dim);
  // One row of linear(): sums [n] (and those of up for kGateUpSilu), biases [n] or null, y as LinearOut says.
  void (*finish)(LinearOut out, const float* sum, const float* up, const float* bias, const float* up_bias, void* y,
                 int64_t n);
  // y [d] = round(sum over j < k of weights[j] * row places[j] of x), in this order.
  void (*combine)(const T* x, const int32_t* places, const float* weights, int64_t k, int64_t d, T* y);
  void (*attend)(const AttendArgs& args);
  // y [t][c] = sum over i < n, in this order, of x [t][n] times w [n][c] with rows ldw apart, which is read once.
  void (*multiply_down)(const float* x, int64_t t, const T* w, int64_t ldw, int64_t n, int64_t c, float* y);
  // Merges the partial results of one query, `stride` floats from span to span (the first is overwritten) -> y [dim].
  void (*merge)(float* partial, int64_t spans, int64_t stride, int64_t dim, T* y);
};

struct Kernels {
  const char* name;
  Product bf16_bf16, f32_bf16, f32_f32;  // activations, weights
  TypeKernels<float> f32;
  TypeKernels<BFloat16> bf16;

  template <class T>
  const TypeKernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return f32;
    } else {
      return bf16;
    }
  }
};

// What this CPU and system can run, slowest first.
std::vector<Isa> supported_isas();
// The table in use: the fastest supported one, unless SACCADE_ISA names another (portable, avx2, avx512,
// avx512-bf16, amx) or use_isa() was called. Choose before other threads compute.
const Kernels& kernels();
void use_isa(Isa isa);  // must be supported
const char* isa_name(Isa isa);

extern const Kernels kPortableKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels, kAmxKernels;

}  // namespace saccade::cpu
