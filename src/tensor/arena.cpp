#include "tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "base/error.h"

namespace saccade {
namespace {

constexpr size_t kAlign = 64, kCudaAlign = 256;
constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t n, size_t to) {
  if (n > SIZE_MAX - to) fail("out of memory: cannot allocate {} bytes", n);
  return (n + to - 1) / to * to;
}

}  // namespace

Buffer::Buffer(size_t bytes, Memory memory, Stream stream) : size_(bytes), memory_(memory), stream_(stream) {
  if (bytes == 0) return;
  if (memory != Memory::kHost) {
    data_ = static_cast<std::byte*>(device::allocate(bytes, memory, stream));
    return;
  }
  const size_t align = bytes >= kHugePage ? kHugePage : kAlign;
  data_ = static_cast<std::byte*>(std::aligned_alloc(align, round_up(bytes, align)));
  if (!data_) fail("out of memory: cannot allocate {} bytes", bytes);
  if (align == kHugePage) ::madvise(data_, round_up(bytes, align), MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (memory_ == Memory::kHost)
    std::free(data_);
  else if (data_)
    device::release(data_, memory_, stream_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      memory_(other.memory_),
      stream_(other.stream_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(memory_, other.memory_);
  std::swap(stream_, other.stream_);
  return *this;
}

void* Arena::allocate(size_t bytes) {
  bytes = round_up(std::max<size_t>(bytes, 1), memory_ == Memory::kCuda ? kCudaAlign : kAlign);
  while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size()) {
    ++current_;
    used_ = 0;
  }
  if (current_ == blocks_.size()) {
    blocks_.emplace_back(std::max(block_bytes_, bytes), memory_);
    used_ = 0;
  }
  std::byte* p = blocks_[current_].data() + used_;
  used_ += bytes;
  return p;
}

Tensor Arena::tensor(DType dtype, std::span<const int64_t> shape) {
  Tensor t(nullptr, dtype, shape);
  t.data = allocate(t.bytes());
  return t;
}

size_t Arena::reserved_bytes() const {
  size_t total = 0;
  for (const auto& block : blocks_) total += block.size();
  return total;
}

}  // namespace saccade
