// What ops over the paged cache hold true of their index.
#pragma once

#include "ops/paged_kv.h"
#include "tensor/expect.h"

namespace saccade::ops {

// That kv_lens, q_offsets and page_table agree with each other and with `rows` rows of the step.
inline void check_paged(const PagedKv& kv, int64_t rows) {
  Dim b{"B"}, max_pages{"max_pages"};
  expect(kv.kv_lens, "kv_lens").shape(b).dtype(DType::kI32).contiguous();
  expect(kv.q_offsets, "q_offsets").shape(b + 1).dtype(DType::kI32).contiguous();
  expect(kv.page_table, "page_table").shape(b, max_pages).dtype(DType::kI32).contiguous();
  const auto* offsets = kv.q_offsets.as<int32_t>();
  const auto* lens = kv.kv_lens.as<int32_t>();
  CHECK(offsets[0] == 0 && offsets[b] == rows, "q_offsets run from {} to {}, T is {}", offsets[0], offsets[b], rows);
  for (int64_t i = 0; i < b; ++i) {
    CHECK(offsets[i] <= offsets[i + 1] && offsets[i + 1] - offsets[i] <= lens[i] && lens[i] <= max_pages * kPageTokens,
          "sequence {}: rows {} to {}, {} cached tokens, {} pages", i, offsets[i], offsets[i + 1], lens[i],
          max_pages.size);
  }
}

}  // namespace saccade::ops
