#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/tables.h"

namespace saccade::cpu {

const Kernels kAvx2Kernels = simd_kernels<Avx2>("avx2");

}  // namespace saccade::cpu
