#include "kernels/cpu/product_bf16.h"

namespace saccade::cpu {

const Kernels kAvx512Bf16Kernels = bf16_kernels("avx512-bf16");

}  // namespace saccade::cpu
