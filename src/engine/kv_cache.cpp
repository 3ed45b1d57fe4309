#include "engine/kv_cache.h"

#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace saccade {

std::optional<uint64_t> KvCache::page_bytes(const KvLayout& layout) {
  auto bytes = checked_mul(static_cast<uint64_t>(layout.values_per_token), kPageTokens * dtype_size(layout.dtype));
  return bytes ? checked_mul(*bytes, static_cast<uint64_t>(layout.layers)) : std::nullopt;
}

KvCache::KvCache(const KvLayout& layout, int64_t pages, Memory memory) : total_(pages) {
  const auto page = page_bytes(layout);
  const auto all = page ? checked_mul(*page, static_cast<uint64_t>(pages)) : std::nullopt;
  if (!all) fail("kv cache: {} pages of {} layers exceed the address space", pages, layout.layers);
  const int64_t values = layout.values_per_token * kPageTokens;
  for (int l = 0; l < layout.layers; ++l) {
    buffers_.emplace_back(static_cast<size_t>(pages * values) * dtype_size(layout.dtype), memory);
    // Kernels read whole pages and give what nobody has written the weight zero, which NaN would survive.
    if (memory == Memory::kCuda) device::fill_zero(buffers_.back().data(), buffers_.back().size(), nullptr);
    layers_.emplace_back(buffers_.back().data(), layout.dtype, std::initializer_list<int64_t>{pages, values});
  }
  if (memory == Memory::kCuda) device::synchronize(nullptr);
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t p = pages; p-- > 0;) free_.push_back(static_cast<int32_t>(p));
}

std::optional<KvCache::Lease> KvCache::reserve(int64_t tokens) {
  const int64_t pages = pages_for(tokens);
  if (pages > free_pages()) return std::nullopt;
  Lease lease;
  lease.pages_.reserve(static_cast<size_t>(pages));
  lease.cache_ = this;
  lease.reserved_ = pages;
  reserved_ += pages;
  return lease;
}

KvCache::Lease::Lease(Lease&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)),
      reserved_(std::exchange(other.reserved_, 0)),
      pages_(std::exchange(other.pages_, {})) {}

KvCache::Lease& KvCache::Lease::operator=(Lease&& other) noexcept {
  std::swap(cache_, other.cache_);
  std::swap(reserved_, other.reserved_);
  std::swap(pages_, other.pages_);
  return *this;
}

void KvCache::Lease::grow(int64_t tokens) {
  CHECK(pages_for(tokens) <= reserved_, "{} tokens, {} pages reserved", tokens, reserved_);
  while (static_cast<int64_t>(pages_.size()) < pages_for(tokens)) {
    pages_.push_back(cache_->free_.back());
    cache_->free_.pop_back();
  }
}

void KvCache::Lease::release() {
  if (!cache_) return;
  while (!pages_.empty()) {
    cache_->free_.push_back(pages_.back());
    pages_.pop_back();
  }
  cache_->reserved_ -= std::exchange(reserved_, 0);
  cache_ = nullptr;
}

}  // namespace saccade
