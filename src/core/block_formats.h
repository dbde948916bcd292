// Block formats of GGUF files: layout, quantisation and dequantisation of rows.
//
// Layouts are little-endian and byte-exact with GGUF; `d` and `m` are f16 bits, `q` packed codes.
// Element i of a block has the value
//   q8_0: d * q[i]                          q4_0: d * (q - 8)        q4_1: d * q + m
//   q5_0: d * (q - 16)                      q5_1: d * q + m
//   q4_k, q5_k: d * scale_j * q - dmin * min_j   (8 sub-blocks of 32, 6-bit scales and minima)
//   q6_k: d * scale_j * (q - 32)                 (16 sub-blocks of 16, 8-bit scales)
// In q4 and q5 blocks of 32, byte j holds element j in its low and element j + 16 in its high
// nibble; `qh` holds the fifth bits. K-blocks are documented in block_formats.cpp.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace spb {

struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];
};
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t q[16];
};
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t q[16];
};
struct BlockQ5_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qh[4];
  uint8_t q[16];
};
struct BlockQ4_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t q[128];
};
struct BlockQ5_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t q[128];
};
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// Converts `elements` of a row from any float or block dtype to f32. `row` needs no alignment.
void dequantize_row(DType dtype, const void* row, float* out, int64_t elements);

// Converts f32 to f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1; usage error for other dtypes.
// Not-a-number, infinite input, and numbers that would become infinite are data errors: a file of
// such weights is useless. The bytes are those of the reference quantisation of GGUF.
void quantize_row(DType dtype, const float* in, void* row, int64_t elements);
bool can_quantize(DType dtype);

}  // namespace spb
