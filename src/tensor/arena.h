// Owners of memory: Buffer for what lives long, Arena for the intermediates of a step.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "tensor/device.h"
#include "tensor/tensor.h"

namespace saccade {

// At least 64-byte aligned, uninitialised. Large buffers of the host ask for huge pages. Throws Error when memory is
// exhausted.
class Buffer {
 public:
  Buffer() = default;
  // With a stream: of a CUDA device, for what the stream does from here until the end of the buffer.
  explicit Buffer(size_t bytes, Memory memory = Memory::kHost, Stream stream = nullptr);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  Memory memory_ = Memory::kHost;
  Stream stream_ = nullptr;
};

// Bump allocator. Memory is never returned to the system between steps, so addresses are stable and the loop does
// not allocate once it has seen its largest step. Not thread-safe: one arena per thread of control.
class Arena {
 public:
  explicit Arena(size_t block_bytes = size_t{16} << 20, Memory memory = Memory::kHost)
      : block_bytes_(block_bytes), memory_(memory) {}

  void* allocate(size_t bytes);  // 64-byte aligned; 256-byte aligned in CUDA memory
  Tensor tensor(DType dtype, std::span<const int64_t> shape);
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) {
    return tensor(dtype, std::span<const int64_t>(shape.begin(), shape.size()));
  }
  void reset() { current_ = used_ = 0; }

  // Everything allocated while a Scope lives is given back when it ends.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), current_(arena.current_), used_(arena.used_) {}
    ~Scope() {
      arena_.current_ = current_;
      arena_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t current_, used_;
  };
  Scope scope() { return Scope(*this); }

  size_t reserved_bytes() const;

 private:
  size_t block_bytes_;
  Memory memory_;
  std::vector<Buffer> blocks_;
  size_t current_ = 0;  // block in use
  size_t used_ = 0;     // bytes of it
};

}  // namespace saccade
