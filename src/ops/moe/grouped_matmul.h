// grouped_matmul: rows that are grouped by expert, each group times the weights of its expert.
//
//   y_t[i, n] = sum_k x[i, k] * W_t,e[n, k]    for offsets[e] <= i < offsets[e + 1]
//
//   name     shape      dtype                   access
//   x        [rows, K]  f32                     read
//   offsets  [E + 1]    i64                     read; 0 first, rows last, never descending
//   W_t,e    [N_t, K]   as in ops/matmul        read, through a MatmulWeight
//   y_t      [rows, N_t]  f32                   overwritten
//
// The targets share x: gate and up. The weights of an expert without rows are not touched, nor is
// its MatmulWeight, so that they need not be in memory.
//
// Bit for bit the same as a call of matmul for every expert that has rows (numerics, determinism
// and aliasing are described there). Each product is split over all threads in turn, so that uneven
// loads leave no thread idle.
#pragma once

#include <cstdint>
#include <span>

#include "ops/matmul/matmul.h"

namespace spb::ops {

struct GroupedMatmulTarget {
  std::span<const MatmulWeight* const> weights;  // one per expert, all of one shape
  TensorView y;
};

struct GroupedMatmulArgs {
  ConstTensorView x;
  std::span<const int64_t> offsets;
  std::span<const GroupedMatmulTarget> targets;
};

void grouped_matmul(Context& context, const GroupedMatmulArgs& args);

}  // namespace spb::ops
