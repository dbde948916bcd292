// Kernels for weights that are rows of floats, one table per instruction set.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "ops/matmul/matmul_row_output.h"

namespace spb::ops {

// Rows of x, and rows of weights as they lie in the file. Strides count elements.
template <typename T>
struct FloatDotArgs {
  const float* x;
  int64_t x_stride;
  int64_t tokens;
  const T* weights;
  int64_t weight_stride;
  int64_t rows;
  int64_t columns;
  RowOutput out;
};

// Weights as panels: 16 rows interleaved, [columns][16 rows] of f32, missing rows zero.
struct FloatPanelArgs {
  const float* x;
  int64_t x_stride;
  int64_t tokens;
  const float* panels;
  int64_t panel_floats;  // from one panel to the next
  int64_t rows;
  int64_t columns;
  RowOutput out;
};

// The results of `dot_*` are row dot products; each is summed in the same order whatever `tokens`
// and `rows` are.
struct FloatKernels {
  void (*dot_f32)(const FloatDotArgs<float>&);
  void (*dot_f16)(const FloatDotArgs<f16>&);
  void (*dot_bf16)(const FloatDotArgs<bf16>&);

  // Up to 16 rows of float weights, each `row_stride` elements after the other, to a panel.
  void (*interleave_f32)(const float* rows, int64_t row_stride, int64_t row_count, int64_t columns,
                         float* panel);
  void (*interleave_f16)(const f16* rows, int64_t row_stride, int64_t row_count, int64_t columns,
                         float* panel);
  void (*interleave_bf16)(const bf16* rows, int64_t row_stride, int64_t row_count, int64_t columns,
                          float* panel);
  // Products with panels, each summed in the order of the columns whatever the other rows are.
  void (*multiply_panels)(const FloatPanelArgs&);
};

namespace isa_portable {
extern const FloatKernels kFloatKernels;
}
namespace isa_avx2 {
extern const FloatKernels kFloatKernels;
}
namespace isa_avx512 {
extern const FloatKernels kFloatKernels;
}

}  // namespace spb::ops
