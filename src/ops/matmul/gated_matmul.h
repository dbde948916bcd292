// gated_matmul: the first half of a SwiGLU network, two products and their gate.
//
//   y[i, n] = silu(sum_k x[i, k] G[n, k]) * sum_k x[i, k] U[n, k]        silu(z) = z / (1 +
//   exp(-z))
//
//   name  shape   dtype                       access
//   x     [M, K]  f32; bf16 on a CUDA device  read
//   G, U  [N, K]  as matmul takes them        read, through MatmulWeights
//   y     [M, N]  as x                        overwritten
//
// What matmul and swiglu give one after the other, in memory of the arena. On a Hopper many rows of
// bf16 with weights of bf16 take one kernel instead, which rounds to bf16 once instead of twice and
// spares writing and reading both products. Tolerance: that of matmul and swiglu.
// Usage errors as matmul and swiglu, and where G and U differ in shape. y overlaps nothing.
// Cost: 4 M N K operations. Source: Shazeer 2020, "GLU Variants Improve Transformer".
#pragma once

#include "ops/matmul/matmul.h"

namespace spb::ops {

struct GatedMatmulArgs {
  ConstTensorView x;
  const MatmulWeight* gate = nullptr;
  const MatmulWeight* up = nullptr;
  TensorView y;
};

void gated_matmul(Context& context, const GatedMatmulArgs& args);

}  // namespace spb::ops
