#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tables.h"

namespace saccade::cpu {

const Kernels kAvx512Kernels = simd_kernels<Avx512>("avx512");

}  // namespace saccade::cpu
