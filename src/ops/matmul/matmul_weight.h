// The inside of a MatmulWeight: shared by the files of this folder only.
#pragma once

#include "core/buffer.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {

struct MatmulWeight::Impl {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  // The caller's rows, or our aligned copy of float rows that were not aligned to their elements.
  const std::byte* source = nullptr;
  int64_t row_stride = 0;
  Buffer owned;
};

}  // namespace spb::ops
