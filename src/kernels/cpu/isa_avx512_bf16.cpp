#include "kernels/cpu/product_bf16.h"
#include "kernels/cpu/tables.h"

namespace saccade::cpu {
namespace {

constexpr Kernels with_dot(Kernels kernels) {
  kernels.bf16_bf16 = product_of<DotBf16>();
  kernels.bf16 = type_kernels<Avx512, BFloat16, PairScores>();
  return kernels;
}

}  // namespace

const Kernels kAvx512Bf16Kernels = with_dot(simd_kernels<Avx512>("avx512-bf16"));

}  // namespace saccade::cpu
