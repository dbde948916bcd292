// rms_norm: root-mean-square normalisation of rows, optionally with a fused residual addition.
//
//   h[i, c] = x[i, c] + residual[i, c]                  (h = x without a residual)
//   y[i, c] = h[i, c] / sqrt(mean_c(h[i, c]^2) + eps) * weight[c]     (+ y[i, c] when accumulate)
//
//   name      shape   dtype  access
//   x         [N, C]  f32    read
//   residual  [N, C]  f32    read, then overwritten with h; optional
//   weight    [C]     f32    read
//   y         [N, C]  f32    overwritten, or added to; may be x when overwritten
//
// On a CUDA device x and y may be bf16, and so may the residual; sums are f32.
// Accumulation: the sum of squares in f32 lanes reduced pairwise, blocks of 2048 columns added in
// double, all in a fixed order: the same bits on every run and for every number of threads. eps is
// inside the root and must be > 0. No other pair of arguments may overlap.
// Tolerance against the reference: 2e-6 relative to the largest |y| of the row.
// Cost: 3 to 5 * 4 * N * C bytes, 4 N C flops: memory bound.
// Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

struct RmsNormArgs {
  ConstTensorView x;
  TensorView residual;  // may be undefined
  ConstTensorView weight;
  TensorView y;
  float eps = 1e-6f;
  bool accumulate = false;
};

void rms_norm(Context& context, const RmsNormArgs& args);
void rms_norm_reference(const RmsNormArgs& args);  // plain loops in double

}  // namespace spb::ops
