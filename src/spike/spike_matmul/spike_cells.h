// Cells: the interleaved layout of dense products.
//
// A cell is 16 consecutive rows of weights times one group of 128 columns. Lane r of a vector
// belongs to row r: a vector holds four consecutive columns of 16 rows, so that one broadcast quad
// of counts serves all of them. A block is 16 rows: its cells follow each other along K; the last
// block is padded with zero scales.
//
//   bytes of a cell
//   codes    2048: byte 64 j + 4 r + b is the core code of column 4 j + b of row r, j < 32
//   scales   64: f32 of 16 rows
//
// Codes are signed: AMX multiplies the 64 columns of 1024 bytes as they lie. Byte products that
// want an unsigned side flip the sign bit, which adds 128, and start from -128 * (sum of counts).
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/matmul/matmul_row_output.h"

namespace spb::spike {

using ops::RowOutput;

inline constexpr int64_t kBlockRows = 16;
inline constexpr int64_t kCellColumns = 128;
inline constexpr int64_t kCellCodeBytes = kBlockRows * kCellColumns;
inline constexpr int64_t kCellBytes = kCellCodeBytes + kBlockRows * 4;

struct SpikeCellArgs {
  const std::byte* blocks;
  int64_t groups;  // of 128 columns: a block has groups * kCellBytes bytes
  int64_t rows;    // of weights; the last block may hold more
  const int8_t* core;
  int64_t core_stride;
  const int32_t* offsets;      // [tokens, groups]: -128 * sum of the core counts
  const int64_t* corrections;  // [groups, 16] to add to the sums of one token and block, or null
  const float* thresholds;
  int64_t tokens;  // one when there are corrections, and one block
  RowOutput out;
};

namespace isa_portable {
void multiply_spike_cells(const SpikeCellArgs& args);
}
namespace isa_avx2 {
void multiply_spike_cells(const SpikeCellArgs& args);
}
namespace isa_avx512 {
void multiply_spike_cells(const SpikeCellArgs& args);
}

}  // namespace spb::spike
