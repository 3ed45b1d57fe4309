// Operations on rows, for every device from sm_80 on. BF16 activations, I32 indices, contiguous; the formulas and
// roundings are those of ops/ops.h. Everything is on the device but for what says otherwise.
#pragma once

#include <span>

#include "kernels/cuda/stream.h"
#include "tensor/tensor.h"

namespace saccade::cuda {

// to = from, both N I32 in whole units of 16 bytes; `from` is pinned memory of the host. `ids` is a part of `to`: where
// it gets -1 - i, it becomes chosen[i], or 0 where that is negative. `chosen` may be pinned too.
void fetch(Stream stream, const Tensor& from, const Tensor& to, const Tensor& ids, const Tensor& chosen);
void embed(Stream stream, const Tensor& table, const Tensor& ids, const Tensor& y);      // table [V,D] plain rows
void gather_rows(Stream stream, const Tensor& x, const Tensor& index, const Tensor& y);  // any dtype
void rms_norm(Stream stream, const Tensor& x, const Tensor& w, float eps, const Tensor& y);
void gelu(Stream stream, const Tensor& x, const Tensor& y);  // erf
// positions [A,T] -> y [T,2,Dh/2] F32, rounded to bf16; sections sum to Dh/2, at most 4.
void rope_table(Stream stream, const Tensor& positions, std::span<const int64_t> sections, double theta,
                const Tensor& y);
void vision_rope_table(Stream stream, const Tensor& positions, double theta, const Tensor& y);  // [2,P] -> [P,2,Dh/2]
// qkv [T,(H+2K)*Dh] with q and k heads in paired order (layout.h) -> q [T,H,Dh] in paired order; k and v go to
// kv_layer [pages,2,K,64,Dh] at `slots`, in the page layout of layout.h.
void qkv_rope_append(Stream stream, const Tensor& qkv, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& kv_layer, const Tensor& q);
// Row n of w [N,K] BF16 is row r = first + n of a fused matrix and goes to strips out [strips, blocks, 1024]: to row r
// where group is 0; else rows come in groups, whose halves pair with each other: r goes to row r - r % group +
// paired_row(r % group % (group / 2), r % group / (group / 2)). What no row fills must be zeroed before.
void to_strips(Stream stream, const Tensor& w, int64_t first, int64_t group, const Tensor& out);

}  // namespace saccade::cuda
