// What a CTA of the batch decode kernel reads ahead of its stages: weights and cache of all layers, by two warps
// through the ring; activations, when they are there, by a thread.
#pragma once

#include "kernels/cuda/decode_batch.cuh"

namespace saccade::cuda::batch {

// Of the i-th product; before the first one -1.
__device__ __forceinline__ int phase_of(const Params& p, int i) { return i < 4 * p.depth ? i % 4 : kHead; }

// Of each slot of the ring one warp brings the first half, another the second.
struct Streamer {
  const Params& p;
  const Memory& memory;
  int lane, half, flying = 0;
  Turn turn, landing;

  // The slot of the next `bytes` of this half, when it is free and few others are on their way. All lanes.
  __device__ __forceinline__ void next(uint32_t bytes) {
    const int most = __shfl_sync(~0u, lane == 0 ? atomicAdd(&memory.s->in_flight, 0) : 0, 0);
    while (flying >= most) {
      mbarrier_wait(memory.full(landing.slot), landing.parity);
      landing.advance(1, kSlots);
      --flying;
    }
    mbarrier_wait(memory.empty(turn.slot), turn.parity ^ 1);
    if (lane == 0) mbarrier_expect(memory.full(turn.slot), bytes);
    __syncwarp();
    ++flying;
  }

  __device__ __forceinline__ void product(const chain::Matrix& m, Range range, const bf16* w) {
    Piece piece;
    while (range.next(m, piece)) {
      const int tiles = piece.tiles();
      for (int block = piece.begin; block < piece.end; block += kSlotBlocks) {
        const bf16* from = w + (static_cast<int64_t>(piece.strip + lane) * m.blocks + block + half) * kBlockElements;
        for (int tile = 0; tile < tiles; ++tile) {
          const int strips =
              block + half < piece.end ? min(kTileStrips, piece.strips - tile * kTileStrips) : 0;  // that have bytes
          next(static_cast<uint32_t>(strips * kBlockBytes));
          if (lane < strips)
            bulk_copy_evict_first(memory.ring + turn.slot * kSlotBytes + half * kTileBytes + lane * kBlockBytes, from,
                                  kBlockBytes, memory.full(turn.slot));
          from += static_cast<int64_t>(kTileStrips) * m.blocks * kBlockElements;
          turn.advance(1, kSlots);
        }
      }
    }
  }

  __device__ __forceinline__ void cache(const bf16* kv, const Walk& walk, Cursor c) {
    const chain::Attention& a = p.attention;
    const int64_t elements = static_cast<int64_t>(kKvPageTokens) * a.head_dim;
    const auto bytes = static_cast<uint32_t>(elements);    // of half of a page
    const auto ids_of = [&](const Cursor& at, int page) {  // of the span that begins there: each lane's page
      return walk.done(at) ? 0 : __ldg(a.page_table + at.b * a.max_pages + min(at.page + page + lane, at.pages - 1));
    };
    for (int ids = ids_of(c, 0); !walk.done(c);) {
      const int pages = walk.pages(c);
      const bf16* from = kv + c.kv_head * elements + half * elements / 2;
      Cursor next = c;
      walk.next_span(next);
      const int next_ids = ids_of(next, 0);
      for (int page = 0; page < pages; page += kStepPages) {
        if (page % 32 == 0 && page > 0) ids = ids_of(c, page);
        for (int value = 0; value < 2; ++value)
          for (int i = page; i < min(page + kStepPages, pages); ++i) {
            const int id = __shfl_sync(~0u, ids, i % 32);
            this->next(bytes);
            if (lane == 0)
              bulk_copy_evict_first(memory.ring + turn.slot * kSlotBytes + half * bytes,
                                    from + (2 * static_cast<int64_t>(id) + value) * a.kv_heads * elements, bytes,
                                    memory.full(turn.slot));
            turn.advance(1, kSlots);
          }
      }
      c = next;
      ids = next_ids;
    }
  }
};

// A thread. Each rank brings half of every block to both.
__device__ __forceinline__ void bring_activations(const Params& p, const Memory& memory) {
  const auto bytes = static_cast<uint32_t>(p.x_rows() * kBlockCols * sizeof(bf16));
  const uint32_t part = cluster_rank() * (bytes / kRanks);
  Turn turn;
  uint32_t parity = 0;
  for (int i = 0; i <= 4 * p.depth; ++i) {
    const int phase = phase_of(p, i);
    const Product& product = p.products[phase];
    const int stage = phase == kOutput ? 2 : phase == kGateUp ? 4 : phase == kDown ? 5 : 0;  // of the layer
    Range range = memory.s->ranges[phase];
    Piece piece;
    bool waited = false;
    while (range.next(product.m, piece)) {
      if (!waited) {
        if (phase != kDown) {  // known from the stage as well, but to no tool
          mbarrier_wait(memory.x_ring_free(), parity);
          for (int rank = 0; rank < kRanks; ++rank)
            mbarrier_arrive_read(cluster_address(memory.x_rings_free(), rank), 1);
          mbarrier_wait(memory.x_rings_free(), parity);
          parity ^= 1;
        }
        wait_stages(p, 1 + i / 4 * kLayerStages + stage);
        fence_proxy_async_global();  // copies read what was written
        waited = true;
      }
      const int pitch = phase == kDown ? static_cast<int>(bytes) : kXBytes;  // from block to block
      const char* from = reinterpret_cast<const char*>(product.x) + static_cast<int64_t>(piece.begin) * pitch + part;
      for (int block = piece.begin; block < piece.end; ++block, from += pitch) {
        mbarrier_wait(memory.x_empty(turn.slot), turn.parity ^ 1);
        mbarrier_expect(memory.x_full(turn.slot), bytes);
        bulk_copy_multicast(memory.x + turn.slot * kXBytes + part, from, bytes / kRanks, memory.x_full(turn.slot),
                            (1 << kRanks) - 1);
        turn.advance(1, kXSlots);
      }
    }
  }
}

}  // namespace saccade::cuda::batch
