// The two forms of a decoding step, chosen by the number of rows.
#include <algorithm>

#include "kernels/cuda/decode.h"

namespace saccade::cuda {
namespace {

constexpr int64_t kPersistentRows = 8;

bool persistent(const Decoder& d, int64_t rows) { return rows <= kPersistentRows && can_decode_persistent(d, rows); }

}  // namespace

bool can_decode(const Decoder& d, int64_t rows) { return persistent(d, rows) || can_decode_chained(d, rows); }

size_t decode_workspace_bytes(const Decoder& d, int64_t max_rows, int64_t max_pages) {
  size_t bytes = 0;
  if (persistent(d, std::min(max_rows, kPersistentRows))) bytes = persistent_workspace_bytes(d, max_pages);
  if (can_decode_chained(d, max_rows)) bytes = std::max(bytes, chained_workspace_bytes(d, max_rows, max_pages));
  return bytes;
}

void decode(Stream stream, const Decoder& d, const DecodeStep& step) {
  if (persistent(d, step.h.dim(0)))
    decode_persistent(stream, d, step);
  else
    decode_chained(stream, d, step);
}

}  // namespace saccade::cuda
