// Kernels for tile units (AMX): bf16 products of 16 x 16 results by 32 columns at a time.
//
// A strip is 16 rows of x in bf16, as tiles [K / 32][16 rows][32 columns]. A panel is 16 rows of
// weights in bf16, as tiles [K / 32][16 pairs of columns][16 rows][2 columns]. A tile is 1 KiB; K
// is padded with zeros to a multiple of 32, missing rows are zero. Rows of x may be laid out as a
// panel too: then rows of bf16 weights take the place of strips as they lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "ops/matmul/matmul_row_output.h"

namespace spb::ops {

inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kTileColumns = 32;
inline constexpr int64_t kStripRows = 16;

// Memory that the next product reads: stretches of `bytes` bytes, one every `stride` bytes.
struct NextBytes {
  const std::byte* first = nullptr;
  int64_t stride = 0;
  int64_t bytes = 0;
  int64_t stretches = 0;
};

struct TileProduct {
  const std::byte* strips;
  int64_t strip_bytes;  // from one strip to the next
  int64_t tokens;       // rows of x
  const std::byte* panels;
  int64_t panel_bytes;  // from one panel to the next
  int64_t rows;         // of weights
  int64_t k_tiles;      // along K
  RowOutput out;
  NextBytes next;  // brought into the second-level cache meanwhile
};

// The same with rows of weights as the first operand: x, which is much smaller, is rearranged.
struct RowProduct {
  const std::byte* rows;  // of bf16 weights; 16 of them are read for every tile of results
  int64_t row_stride;     // bytes
  int64_t row_count;
  int64_t columns;
  const std::byte* panels;  // of x
  int64_t panel_bytes;      // from one panel to the next
  int64_t tokens;
  RowOutput out;
};

namespace isa_amx {

// Up to 16 rows of x to a strip or a panel.
void convert_strip(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                   std::byte* strip);
void convert_panel(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                   std::byte* panel);

// Cells [0, cells) of a group of block rows, or the columns of up to 16 float rows, to a panel.
void expand_cells(DType dtype, const std::byte* group, int64_t cells, std::byte* panel);
void expand_floats(DType dtype, const std::byte* rows, int64_t row_stride, int64_t row_count,
                   int64_t columns, std::byte* panel);

// Each result is summed in the order of K whatever the other rows are, and to the same bits by both
// functions.
void multiply_tiles(const TileProduct& product);
void multiply_rows(const RowProduct& product);

}  // namespace isa_amx

}  // namespace spb::ops
