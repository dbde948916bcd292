// What kernels need to read blocks as they lie in the rows of a file: the four bytes that a dot
// product takes together are one 32-bit word, and core/simd/row_words.h brings words of kLanes rows
// into the order of a cell (matmul_cells.h). Included only by kernel files; everything is internal
// to the instruction set they are compiled for.
#pragma once

#include "core/simd/bytes.h"
#include "core/simd/row_words.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;

// Bit 4 j + b of each lane to bit j of its byte b.
inline VecI spread_fifth_bits(VecI bits) {
  VecI result = {};
  for (int j = 0; j < 8; ++j) {
    const VecI four = (bits >> (4 * j)) & 15;
    result |= ((four | four << 7 | four << 14 | four << 21) & 0x01010101) << j;
  }
  return result;
}

// How blocks of 32 columns begin.
template <DType kDType>
struct BlockHeader {
  static constexpr CellFormat kFormat = cell_format(kDType);
  static constexpr int64_t kHigh = kFormat.minima ? 4 : 2;  // after d, or d and m
  static constexpr int64_t kCodes = kHigh + (kFormat.bits == 5 ? 4 : 0);
  static constexpr int64_t kBytes = kCodes + (kFormat.bits == 8 ? 32 : 16);
};

// Asks for the rows of the group behind this one, which lie together, a block of every row at a
// time.
inline void prefetch_next_group(const std::byte* group, int64_t stride, int64_t block,
                                int64_t block_bytes) {
  const std::byte* p = group + kGroupRows * (stride + block * block_bytes);
  for (int64_t i = 0; i < kGroupRows * block_bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

}  // namespace spb::ops::SPB_ISA
