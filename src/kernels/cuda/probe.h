// What a CUDA device can do, measured: the floors that benchmarks compare with.
#pragma once

#include <cstddef>

namespace saccade::cuda {

// Bytes per second of reading `bytes` of device memory once with wide loads, the best of several passes. Takes that
// memory for as long as it measures. Waits.
double measure_read_bandwidth(size_t bytes = size_t{2} << 30);

// Floating-point operations per second of bf16 matrix instructions with float sums on operands in shared memory or
// registers (random values: zeros would draw less power), for about `seconds`. Waits.
double measure_bf16_peak(double seconds);
const char* bf16_peak_instruction();  // "wgmma" or "mma.sync"

}  // namespace saccade::cuda
