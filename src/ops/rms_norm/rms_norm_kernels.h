// The inside of rms_norm: the CPU path and its kernels, one per instruction set. Arguments have
// been checked.
#pragma once

#include <cstdint>

#include "ops/rms_norm/rms_norm.h"

namespace spb::ops {

void rms_norm_cpu(Context& context, const RmsNormArgs& args);

// Consecutive rows; distances between rows are in floats.
struct RmsNormRows {
  const float* x;
  float* residual;  // null: none
  const float* weight;
  float* y;
  int64_t x_stride;
  int64_t residual_stride;
  int64_t y_stride;
  int64_t columns;
  float eps;
  bool accumulate;
};

namespace isa_portable {
void rms_norm_rows(const RmsNormRows& rows, int64_t begin, int64_t end);
}
namespace isa_avx2 {
void rms_norm_rows(const RmsNormRows& rows, int64_t begin, int64_t end);
}
namespace isa_avx512 {
void rms_norm_rows(const RmsNormRows& rows, int64_t begin, int64_t end);
}

}  // namespace spb::ops
