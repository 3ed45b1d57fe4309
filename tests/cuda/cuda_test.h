// What tests of CUDA kernels share. They need a GPU and are skipped without one.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/stream.h"
#include "tensor/weight.h"

namespace saccade {

inline bool have_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!have_gpu()) GTEST_SKIP() << "no CUDA device";
  }
};

// Owns device memory; every byte is 0xff (NaN in BF16 and F32) until it is written.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() {
    for (void* p : owned_) cudaFree(p);
  }

  Tensor poison(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, dtype, shape);
    const size_t bytes = std::max<size_t>(t.bytes(), 16);
    cuda::check(cudaMalloc(&t.data, bytes), "cudaMalloc");
    cuda::check(cudaMemset(t.data, 0xff, bytes), "cudaMemset");
    owned_.push_back(t.data);
    return t;
  }
  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor t = poison(dtype, shape);
    cuda::check(cudaMemset(t.data, 0, t.bytes()), "cudaMemset");
    return t;
  }
  Tensor upload(DType dtype, std::initializer_list<int64_t> shape, const void* host) {
    const Tensor t = poison(dtype, shape);
    cuda::check(cudaMemcpy(t.data, host, t.bytes(), cudaMemcpyHostToDevice), "upload");
    return t;
  }

 private:
  std::vector<void*> owned_;
};

template <class T>
std::vector<T> download(const Tensor& t) {
  std::vector<T> host(t.bytes() / sizeof(T));
  cuda::check(cudaDeviceSynchronize(), "kernel");
  cuda::check(cudaMemcpy(host.data(), t.data, t.bytes(), cudaMemcpyDeviceToHost), "download");
  return host;
}
inline std::vector<double> download_doubles(const Tensor& t) {
  std::vector<double> values;
  if (t.dtype == DType::kBF16)
    for (const BFloat16 v : download<BFloat16>(t)) values.push_back(static_cast<double>(float(v)));
  else
    for (const float v : download<float>(t)) values.push_back(static_cast<double>(v));
  return values;
}

inline std::vector<BFloat16> normal_bf16(std::mt19937& rng, size_t count, float sigma = 1) {
  std::normal_distribution<float> normal(0, sigma);
  std::vector<BFloat16> values(count);
  for (auto& v : values) v = BFloat16(normal(rng));
  return values;
}

// ||a - b|| / ||b||; NaN counts as infinite.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  const double error = std::sqrt(difference / std::max(norm, 1e-300));
  return std::isnan(error) ? INFINITY : error;
}

// Row-major [N,K] host values as a kStrips weight on the device; row n of `w` stands at row order[n] of the strips
// (order empty: n). `rows` counts rows of the strips.
inline Weight strips_of_host(DeviceMemory& memory, const std::vector<BFloat16>& w, int64_t rows, int64_t cols,
                             const std::vector<int64_t>& order = {}) {
  const int64_t blocks = cuda::blocks_of(cols), strips = cuda::strips_of(rows);
  std::vector<BFloat16> out(static_cast<size_t>(strips * blocks * cuda::kBlockElements), BFloat16(0.0f));
  for (size_t n = 0; n < w.size() / static_cast<size_t>(cols); ++n)
    for (int64_t k = 0; k < cols; ++k) {
      const int64_t to = order.empty() ? static_cast<int64_t>(n) : order[n];
      out[static_cast<size_t>(cuda::strip_offset(to, k, blocks))] =
          w[n * static_cast<size_t>(cols) + static_cast<size_t>(k)];
    }
  Weight weight;
  weight.format = Weight::Format::kStrips;
  weight.parts = 1;
  weight.strip_rows = rows;
  weight.strip_cols = cols;
  weight.data[0] = memory.upload(DType::kBF16, {strips, blocks, cuda::kBlockElements}, out.data());
  return weight;
}

}  // namespace saccade
