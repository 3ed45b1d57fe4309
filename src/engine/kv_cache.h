// The paged KV cache: pages of 64 tokens, the same page number in every layer. What the values are is the model's
// business.
#pragma once

#include <optional>
#include <vector>

#include "models/model.h"
#include "tensor/arena.h"

namespace saccade {

class KvCache {
 public:
  KvCache(const KvLayout& layout, int64_t pages, Memory memory = Memory::kHost);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  static std::optional<uint64_t> page_bytes(const KvLayout& layout);  // of all layers; empty on overflow
  static int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

  const std::vector<Tensor>& layers() const { return layers_; }  // [pages, 64 * values_per_token] each
  int64_t total_pages() const { return total_; }
  int64_t free_pages() const { return total_ - reserved_; }  // not promised to any sequence

  // The pages of one sequence: promised all at once, so that an admitted sequence always ends, taken one by one as
  // tokens come, given back when the lease dies. The cache must outlive it.
  class Lease {
   public:
    Lease() = default;
    ~Lease() { release(); }
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;

    void grow(int64_t tokens);  // so that the first `tokens` tokens have a place; at most as many as reserved
    const std::vector<int32_t>& pages() const { return pages_; }
    void release();

   private:
    friend class KvCache;
    KvCache* cache_ = nullptr;
    int64_t reserved_ = 0;
    std::vector<int32_t> pages_;
  };
  std::optional<Lease> reserve(int64_t tokens);  // empty while too few pages are free

 private:
  std::vector<Buffer> buffers_;
  std::vector<Tensor> layers_;
  std::vector<int32_t> free_;  // last out first, so that a quiet cache stays within few pages
  int64_t total_ = 0, reserved_ = 0;
};

}  // namespace saccade
