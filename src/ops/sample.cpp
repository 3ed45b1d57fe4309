#include "kernels/cuda/sampling.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "tensor/expect.h"

namespace saccade::ops {

void sample_(const Ctx& c, const Tensor& logits, const Tensor& rows, const Tensor& seen, bool all_greedy,
             const Tensor& ids, const Tensor& ids_for_host) {
  Dim r{"R"}, v{"V"}, s{"seen"};
  expect(logits, "logits").shape(r, v).dtype(DType::kF32).contiguous();
  expect(rows, "rows").shape(r, static_cast<int64_t>(sizeof(SampleRow))).dtype(DType::kU8).contiguous();
  expect(seen, "seen").shape(s, (v + 31) / 32).dtype(DType::kI32).contiguous();
  expect(ids, "ids").shape(r).dtype(DType::kI32).contiguous();
  expect(ids_for_host, "ids_for_host").shape(r).dtype(DType::kI32).contiguous();
  CHECK(c.cuda(), "the CPU samples in the engine");
  if constexpr (kCuda) {
    const Tensor workspace = c.arena.tensor(DType::kU8, {static_cast<int64_t>(cuda::sample_workspace_bytes(r, v))});
    cuda::sample(c.stream, logits, reinterpret_cast<const SampleRow*>(rows.data), seen, all_greedy, workspace, ids,
                 ids_for_host);
  }
}

}  // namespace saccade::ops
