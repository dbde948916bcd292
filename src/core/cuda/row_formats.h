// The formats of weights that kernels read as files have them (core/cuda/block_rows.cuh): what is
// in another one is widened before it goes to the device.
#pragma once

#include "core/dtype.h"

namespace spb::cuda {

inline bool readable_on_device(DType dtype) {
  return is_float(dtype) || dtype == DType::kQ8_0 || dtype == DType::kQ4_0 || dtype == DType::kQ4_1;
}

}  // namespace spb::cuda
