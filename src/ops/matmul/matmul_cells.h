// Cells: the interleaved layout in which block formats are multiplied.
//
// A cell is 16 consecutive rows times 32 consecutive columns. Lane r of a vector belongs to row r:
// a vector of codes holds four consecutive columns of 16 rows, and one broadcast quad of x serves
// all of them, so that no horizontal sums are needed. A group is 16 rows: its cells follow each
// other along K; groups follow each other along N, the last one filled up with repeats of the last
// row, whose results are dropped.
//
//   bytes of a cell, in this order
//   codes    256 (4 to 6 bits): byte 64 j + 4 r + b holds the low four bits of column 4 j + b of
//            row r in its low and of column 16 + 4 j + b in its high nibble, j < 4
//            512 (8 bits): byte 64 j + 4 r + b is column 4 j + b of row r plus 128, j < 8
//   high     64 (5 bits): bit j of byte 4 r + b is bit 4 of column 4 j + b, j < 8
//            128 (6 bits): bits 2 j, 2 j + 1 of byte 64 h + 4 r + b are bits 4, 5 of column
//            16 h + 4 j + b, j < 4
//   scales   q4_0, q5_0, q8_0: f16 d[16]            q4_1, q5_1: f16 d[16], m[16]
//            q4_k, q5_k: u8 scale[16], min[16]      q6_k: i8 scale[2][16], one per 16 columns
//   K-blocks put f16 d[16], and dmin[16] except for q6_k, before every eight cells.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "ops/matmul/matmul_row_output.h"

namespace spb::ops {

inline constexpr int64_t kGroupRows = 16;
inline constexpr int64_t kCellColumns = 32;

struct CellFormat {
  int bits;          // of a code
  int offset_shift;  // a code stands for code - 2^offset_shift; -1: no such offset
  bool minima;       // a minimum is added to (q4_1, q5_1) or subtracted from (K-blocks) d * code
  int super_cells;   // cells that share the f16 scales in front of them; 0: no such scales
  int cell_bytes;    // codes, high bits and scales
  int super_bytes;   // the f16 scales in front
};

constexpr CellFormat cell_format(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0: return {4, 3, false, 0, 288, 0};
    case DType::kQ4_1: return {4, -1, true, 0, 320, 0};
    case DType::kQ5_0: return {5, 4, false, 0, 352, 0};
    case DType::kQ5_1: return {5, -1, true, 0, 384, 0};
    case DType::kQ8_0: return {8, 7, false, 0, 544, 0};
    case DType::kQ4_K: return {4, -1, true, 8, 288, 64};
    case DType::kQ5_K: return {5, -1, true, 8, 352, 64};
    case DType::kQ6_K: return {6, 5, false, 8, 416, 32};
    default: return {};
  }
}

constexpr bool is_cell_dtype(DType dtype) { return cell_format(dtype).bits != 0; }

// Bytes of one group of 16 rows.
constexpr int64_t group_bytes(DType dtype, int64_t columns) {
  const CellFormat f = cell_format(dtype);
  const int64_t cells = columns / kCellColumns;
  return cells * f.cell_bytes + (f.super_cells > 0 ? cells / f.super_cells * f.super_bytes : 0);
}

// Interleaves up to 16 rows of blocks, at least one, into one group.
void pack_group(DType dtype, const std::byte* rows, int64_t row_stride, int64_t row_count,
                int64_t columns, std::byte* group);

struct PackArgs {
  const std::byte* rows;
  int64_t row_stride;
  int64_t row_count;  // 1 .. 16
  int64_t columns;
  std::byte* group;
};

struct PackKernels {
  void (*q8_0)(const PackArgs&);
  void (*q4_0)(const PackArgs&);
  void (*q4_1)(const PackArgs&);
  void (*q5_0)(const PackArgs&);
  void (*q5_1)(const PackArgs&);
  void (*q4_k)(const PackArgs&);
  void (*q5_k)(const PackArgs&);
  void (*q6_k)(const PackArgs&);
};

// 32 columns of one row of x, quantised: x = d * q.
struct XCell {
  int8_t q[32];
  float d;
  float d_sum;             // d * sum of q
  int32_t negated_sum[2];  // of the first and the last 16 codes
};

struct CellArgs {
  const std::byte* groups;
  int64_t group_bytes;  // from one group to the next
  int64_t rows;         // of weights; the last group may hold more
  int64_t cells;        // along K
  const XCell* x;       // [tokens, cells]
  int64_t tokens;
  RowOutput out;
};

// Each result is summed in the order of the cells whatever `tokens` is.
using CellKernel = void (*)(const CellArgs&);

// So many tokens share one rearrangement of rows that are not kept as cells; with more of them,
// packing the rows first is quicker.
inline constexpr int64_t kDirectTokens = 8;

struct CellKernels {
  // x[columns] -> columns / 32 cells. NaN or infinity in a cell makes its d NaN.
  void (*quantize)(const float* x, int64_t columns, XCell* cells);
  CellKernel q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k;
  // The same results from rows as they lie in a file: `groups` is the first row, `group_bytes`
  // counts 16 of them, `rows` is a multiple of 16.
  CellKernel rows_q8_0, rows_q4_0, rows_q4_1, rows_q5_0, rows_q5_1;
};

namespace isa_portable {
extern const CellKernels kCellKernels;
extern const PackKernels kPackKernels;
}  // namespace isa_portable
namespace isa_avx2 {
extern const CellKernels kCellKernels;
extern const PackKernels kPackKernels;
}  // namespace isa_avx2
namespace isa_avx512 {
extern const CellKernels kCellKernels;
extern const PackKernels kPackKernels;
}  // namespace isa_avx512

}  // namespace spb::ops
