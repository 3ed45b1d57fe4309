#include "kernels/cpu/simd_portable.h"
#include "kernels/cpu/tables.h"

namespace saccade::cpu {

const Kernels kPortableKernels = simd_kernels<Portable>("portable");

}  // namespace saccade::cpu
