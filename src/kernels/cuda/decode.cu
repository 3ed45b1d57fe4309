// The two forms of a decoding step, chosen by the number of rows.
#include "kernels/cuda/decode.h"

namespace saccade::cuda {
namespace {

constexpr int64_t kPersistentRows = 8;

bool persistent(const Decoder& d, int64_t rows) { return rows <= kPersistentRows && can_decode_persistent(d, rows); }

// Where the workspace of the chain begins: that of the persistent kernel holds its state between launches.
int64_t chained_begin(const Decoder& d) {
  if (!persistent(d, 1)) return 0;
  return (static_cast<int64_t>(persistent_workspace_bytes(d)) + 255) / 256 * 256;
}

}  // namespace

bool can_decode(const Decoder& d, int64_t rows) { return persistent(d, rows) || can_decode_chained(d, rows); }

size_t decode_workspace_bytes(const Decoder& d, int64_t max_rows, int64_t max_pages) {
  const auto begin = static_cast<size_t>(chained_begin(d));
  return can_decode_chained(d, max_rows) ? begin + chained_workspace_bytes(d, max_rows, max_pages) : begin;
}

void decode(Stream stream, const Decoder& d, const DecodeStep& step) {
  if (persistent(d, step.h.dim(0))) return decode_persistent(stream, d, step);
  DecodeStep chained = step;
  chained.workspace = step.workspace.slice(chained_begin(d), step.workspace.dim(0));
  decode_chained(stream, d, chained);
}

}  // namespace saccade::cuda
