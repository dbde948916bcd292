// The inside of a MatmulWeight: shared by the files of this folder only.
#pragma once

#include "core/buffer.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops {

struct MatmulWeight::Impl {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  // The caller's rows, or our copy of float rows that were not aligned to their elements. Null
  // when the rows were interleaved.
  const std::byte* source = nullptr;
  int64_t row_stride = 0;
  // Groups of cells (matmul_cells.h), or the copy above; empty when the caller's memory is used.
  Buffer owned;
  // On a device: blocks in tiles for tensor cores (matmul_quantized_tiles.cuh), not in planes.
  bool in_tiles = false;

  int64_t groups() const { return (rows + kGroupRows - 1) / kGroupRows; }
};

}  // namespace spb::ops
