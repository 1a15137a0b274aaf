// What a thread holds of the matrices of a tensor core product. The layouts are those of PTX ISA,
// "Matrix Fragments for mma.m16n8k32" and "mma.m16n8k16 with floating point type"; with
// g = lane / 4 and t = lane % 4:
//
//   int8, A [16, 32]: byte j of r[0] is (g, 4 t + j), of r[1] (g + 8, 4 t + j),
//                     of r[2] (g, 16 + 4 t + j), of r[3] (g + 8, 16 + 4 t + j)
//         B [32, 8]:  byte j of r[0] is (4 t + j, g), of r[1] (16 + 4 t + j, g)
//   f16,  A [16, 16]: half j of r[0] is (g, 2 t + j), of r[1] (g + 8, 2 t + j),
//                     of r[2] (g, 8 + 2 t + j), of r[3] (g + 8, 8 + 2 t + j)
//         B [16, 8]:  half j of r[0] is (2 t + j, g), of r[1] (8 + 2 t + j, g)
//   both, C [16, 8]:  r[0], r[1] are (g, 2 t), (g, 2 t + 1), r[2], r[3] the same of row g + 8
#pragma once

#include <stdint.h>

namespace llama2q::cuda {

struct Int8A {
  uint32_t r[4];
};

struct Int8B {
  uint32_t r[2];
};

struct IntC {
  int32_t r[4];
};

struct HalfA {
  uint32_t r[4];
};

struct HalfB {
  uint32_t r[2];
};

struct FloatC {
  float r[4];
};

}  // namespace llama2q::cuda
