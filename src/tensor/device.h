// Where memory lies and work runs: the host, or a CUDA device. In a build without CUDA everything here says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct CUevent_st;
struct CUstream_st;

namespace saccade {

enum class Memory : uint8_t {
  kHost,
  kPinned,  // of the host, which a CUDA device reads and writes by itself
  kCuda,    // of the CUDA device that is current
};

using Stream = CUstream_st*;  // cudaStream_t; null on the CPU
using Event = CUevent_st*;    // cudaEvent_t

namespace device {

#ifdef SACCADE_CUDA
inline constexpr bool kCudaBuilt = true;
#else
inline constexpr bool kCudaBuilt = false;
#endif

struct Info {
  std::string name;  // "NVIDIA H200"
  size_t total_bytes = 0, free_bytes = 0;
};
// Of all CUDA devices; empty without a driver, and in a build without CUDA.
std::vector<Info> list();

// Makes device `index` the current one of this thread. Throws Error.
void use(int index);

// All of these throw Error naming what failed. `allocate` does so when memory is exhausted. Memory is kPinned or kCuda;
// with a stream it is of the device, for what the stream does from here until it is released, and neither call waits.
void* allocate(size_t bytes, Memory memory, Stream stream = nullptr);
void release(void* p, Memory memory, Stream stream = nullptr) noexcept;
Stream new_stream();
void delete_stream(Stream stream) noexcept;
void synchronize(Stream stream);
Event new_event();
void delete_event(Event event) noexcept;
void record(Event event, Stream stream);
void wait(Event event);  // until the stream has come to where it was recorded
// In any direction between host, pinned and CUDA memory, after what the stream has to do. From or to pageable host
// memory it may wait.
void copy(void* to, const void* from, size_t bytes, Stream stream);
void fill_zero(void* p, size_t bytes, Stream stream);

}  // namespace device
}  // namespace saccade
