#include <cstdlib>
#include <string_view>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/stream.h"

namespace saccade::cuda {
namespace {

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&value, which, device), "device attribute");
  return value;
}

}  // namespace

bool use_hopper() {
  static const bool hopper = [] {
    const char* asked = std::getenv("SACCADE_CUDA_KERNELS");
    const std::string_view kernels = asked ? asked : "";
    if (!kernels.empty() && kernels != "portable" && kernels != "hopper")
      fail("SACCADE_CUDA_KERNELS: expected portable or hopper, found \"{}\"", kernels);
    return kernels != "portable" && attribute(cudaDevAttrComputeCapabilityMajor) == 9;
  }();
  return hopper;
}

int sm_count() {
  static const int count = attribute(cudaDevAttrMultiProcessorCount);
  return count;
}

}  // namespace saccade::cuda
