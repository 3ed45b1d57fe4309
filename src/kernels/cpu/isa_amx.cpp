#include "kernels/cpu/attend_amx.h"
#include "kernels/cpu/product_amx.h"
#include "kernels/cpu/product_bf16.h"

namespace saccade::cpu {
namespace {

constexpr Kernels with_tiles(Kernels kernels) {
  kernels.bf16_bf16 = {TileBf16::kRows,  TileBf16::kStep, TileBf16::kMostRows,
                       sizeof(BFloat16), TileBf16::pack,  TileBf16::multiply};
  kernels.bf16.attend = Attention<Avx512, BFloat16, PairScores, AmxAttentionTiles>::run;
  return kernels;
}

}  // namespace

const Kernels kAmxKernels = with_tiles(bf16_kernels("amx"));

}  // namespace saccade::cpu
