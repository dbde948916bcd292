// grouped_matmul: rows that are grouped by expert, each group times the weights of its expert.
//
//   y_t[i, n] = sum_k x[i, k] * W_t,e[n, k]    for offsets[e] <= i < offsets[e + 1]
//
//   name     shape        dtype                 access
//   x        [rows, K]    f32                   read
//   offsets  [E + 1]      i64                   read; 0 first, rows last, never descending
//   W_t,e    [N_t, K]     as in ops/matmul      read, through a MatmulWeight
//   y_t      [rows, N_t]  f32                   overwritten
//
// The targets share x: gate and up. On the CPU the weights of an expert without rows are not
// touched, nor is its MatmulWeight, so that they need not be in memory.
//
// CPU: bit for bit the same as a call of matmul for every expert that has rows (numerics,
// determinism and aliasing are described there). Each product is split over all threads in turn, so
// that uneven loads leave no thread idle.
//
// CUDA: x and y are alike f32 or bf16, offsets lie on the device and end with at most `rows`; rows
// of y behind the last expert's keep what they held. Columns of x come in multiples of 8, its rows
// are aligned to 16 bytes.
//   up to 64 rows        f32 products of the weights as they are stored; an expert's are read once
//                        for each eight of its rows
//   more rows, f32 x     the same sums in f32, in tiles
//   more rows, bf16 x    weights of other formats rounded to bf16; tensor cores, f32 sums
// Within one path a row gives the same bits whatever the others are. Errors stay below those of
// matmul (grouped_matmul_cuda_test.cpp).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/matmul/matmul.h"

namespace spb::ops {

struct GroupedMatmulTarget {
  // One per expert, all of one shape; on a CUDA device one [E * N, K] for all.
  std::span<const MatmulWeight* const> weights;
  TensorView y;
};

struct GroupedMatmulArgs {
  ConstTensorView x;
  std::span<const int64_t> offsets;
  std::span<const GroupedMatmulTarget> targets;
};

// The weights of a stack of experts [E, N, K], as targets want them on the device of `context`.
std::vector<MatmulWeight> prepare_expert_weights(Context& context, ConstTensorView stack,
                                                 bool allow_repack);

void grouped_matmul(Context& context, const GroupedMatmulArgs& args);

}  // namespace spb::ops
