#include <cuda_runtime_api.h>

#include "base/error.h"
#include "tensor/device.h"

namespace saccade::device {
namespace {

void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported must not be found again by the next call
  fail("cuda: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace

std::vector<Info> list() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  int current = 0;
  check(cudaGetDevice(&current), "current device");
  std::vector<Info> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, i), "device properties");
    Info info{.name = properties.name};
    check(cudaSetDevice(i), "device");
    check(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "free memory");
    devices.push_back(std::move(info));
  }
  check(cudaSetDevice(current), "device");
  return devices;
}

void use(int index) { check(cudaSetDevice(index), fmt::format("device {}", index)); }

void* allocate(size_t bytes, Memory memory, Stream stream) {
  void* p = nullptr;
  const bool pinned = memory == Memory::kPinned;
  const cudaError_t status = stream   ? cudaMallocAsync(&p, bytes, stream)
                             : pinned ? cudaMallocHost(&p, bytes)
                                      : cudaMalloc(&p, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail("out of {} memory: cannot allocate {} bytes", pinned ? "pinned" : "device", bytes);
  }
  check(status, "allocation");
  return p;
}

void release(void* p, Memory memory, Stream stream) noexcept {
  if (stream)
    cudaFreeAsync(p, stream);
  else if (memory == Memory::kPinned)
    cudaFreeHost(p);
  else
    cudaFree(p);
}

Stream new_stream() {
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  // What is released on a stream stays with the process: giving it back would take as long as waiting.
  int device = 0;
  cudaMemPool_t pool = nullptr;
  uint64_t kept = UINT64_MAX;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetDefaultMemPool(&pool, device), "memory pool");
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "memory pool");
  return stream;
}

void delete_stream(Stream stream) noexcept { cudaStreamDestroy(stream); }

void synchronize(Stream stream) { check(cudaStreamSynchronize(stream), "step"); }

Event new_event() {
  Event event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  return event;
}

void delete_event(Event event) noexcept { cudaEventDestroy(event); }

void record(Event event, Stream stream) { check(cudaEventRecord(event, stream), "event"); }

void wait(Event event) { check(cudaEventSynchronize(event), "step"); }

void copy(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy");
}

void fill_zero(void* p, size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(p, 0, bytes, stream), "fill");
}

}  // namespace saccade::device
