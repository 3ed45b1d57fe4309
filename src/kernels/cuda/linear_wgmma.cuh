// wgmma with both operands in shared memory: K-major rows of 64 bf16 in the 128-byte swizzle (PTX ISA, "wgmma").
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace saccade::cuda {

// Of rows of 128 bytes from a 1024-byte aligned address on; step k of 16 columns is the descriptor + 2 k.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32;  // from one group of 8 rows to the next
  return kSwizzle128 | kEightRows | (uint64_t{1} << 16) | ((address & 0x3ffff) >> 4);
}

#define SACCADE_REGS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define SACCADE_REGS_32 SACCADE_REGS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SACCADE_REGS_48 SACCADE_REGS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define SACCADE_REGS_64 SACCADE_REGS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SACCADE_REGS_80 SACCADE_REGS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define SACCADE_REGS_96 SACCADE_REGS_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define SACCADE_REGS_112 SACCADE_REGS_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define SACCADE_REGS_128 \
  SACCADE_REGS_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SACCADE_OUT_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SACCADE_OUT(i) SACCADE_OUT_4(i), SACCADE_OUT_4(i + 4), SACCADE_OUT_4(i + 8), SACCADE_OUT_4(i + 12)
#define SACCADE_OUT_16 SACCADE_OUT(0)
#define SACCADE_OUT_32 SACCADE_OUT_16, SACCADE_OUT(16)
#define SACCADE_OUT_48 SACCADE_OUT_32, SACCADE_OUT(32)
#define SACCADE_OUT_64 SACCADE_OUT_48, SACCADE_OUT(48)
#define SACCADE_OUT_80 SACCADE_OUT_64, SACCADE_OUT(64)
#define SACCADE_OUT_96 SACCADE_OUT_80, SACCADE_OUT(80)
#define SACCADE_OUT_112 SACCADE_OUT_96, SACCADE_OUT(96)
#define SACCADE_OUT_128 SACCADE_OUT_112, SACCADE_OUT(112)
#define SACCADE_WGMMA(n, regs, a_arg, b_arg, add_arg)                                           \
  if constexpr (kN == n)                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_arg                                    \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" SACCADE_REGS_##regs \
               "}, %" #a_arg ", %" #b_arg ", p, 1, 1, 0, 0;\n}\n"                               \
               : SACCADE_OUT_##regs                                                             \
               : "l"(a), "l"(b), "r"(add))

// d = a b + (add ? d : 0): a [64,16], b [16,kN]; d in fragments of m64nNk16, four floats per 8 columns.
template <int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int add) {
  static_assert(kN % 32 == 0 && kN <= 256);
  SACCADE_WGMMA(32, 16, 16, 17, 18);
  SACCADE_WGMMA(64, 32, 32, 33, 34);
  SACCADE_WGMMA(96, 48, 48, 49, 50);
  SACCADE_WGMMA(128, 64, 64, 65, 66);
  SACCADE_WGMMA(160, 80, 80, 81, 82);
  SACCADE_WGMMA(192, 96, 96, 97, 98);
  SACCADE_WGMMA(224, 112, 112, 113, 114);
  SACCADE_WGMMA(256, 128, 128, 129, 130);
}

#undef SACCADE_WGMMA

}  // namespace saccade::cuda
