// Many rows on cards before Hopper: blocks of 128 rows by 128 outputs, eight warps with 64 by 32
// each, three stages of asynchronous copies.
#include <algorithm>

#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/moe/grouped_matmul_tiles.cuh"

namespace spb::ops {
namespace {

using T = __nv_bfloat16;

constexpr int kThreads = 256;
constexpr int kRows = 128;
constexpr int kOutputs = 128;
constexpr int kStep = 32;  // columns of a stage
constexpr int kStages = 3;
constexpr int kStride = kStep + 8;  // elements: rows that load_matrices reads without conflicts
constexpr int kWarpRows = 64;
constexpr int kWarpOutputs = 32;

struct Stage {
  T x[kRows][kStride];
  T w[kOutputs][kStride];
};

using Sums = float[kWarpRows / 16][kWarpOutputs / 8][4];

__device__ void copy_stage(Stage& stage, const GroupedProduct<T>& p, const T* weights,
                           const GroupedTile& tile, int column) {
  constexpr int kPieces = kStep / 8;
  const int first_column = column + static_cast<int>(threadIdx.x) % kPieces * 8;
  const int piece = static_cast<int>(threadIdx.x) % kPieces * 8;
  const T* w = weights + int64_t{tile.expert} * p.outputs * p.columns;
#pragma unroll
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int row = static_cast<int>(threadIdx.x) / kPieces + i * (kThreads / kPieces);
    const bool x_valid = tile.first_row + row < tile.end_row && first_column < p.columns;
    const bool w_valid = tile.first_output + row < p.outputs && first_column < p.columns;
    const T* x_from = x_valid ? p.x.row(tile.first_row + row) + first_column : p.x.data;
    const T* w_from =
        w_valid ? w + int64_t{tile.first_output + row} * p.columns + first_column : weights;
    cuda::copy_async<16>(&stage.x[row][piece], x_from, x_valid);
    cuda::copy_async<16>(&stage.w[row][piece], w_from, w_valid);
  }
}

__device__ void multiply(const Stage& stage, int warp_row, int warp_output, int lane, Sums& sums) {
#pragma unroll
  for (int part = 0; part < kStep / 16; ++part) {
    const int column = part * 16 + lane / 16 * 8;
    uint32_t w[kWarpOutputs / 16][4];
#pragma unroll
    for (int n = 0; n < kWarpOutputs / 16; ++n) {
      cuda::load_matrices(w[n], &stage.w[warp_output + n * 16 + lane % 16][column]);
    }
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m) {
      uint32_t x[4];
      cuda::load_matrices(x, &stage.x[warp_row + m * 16 + lane % 16][column]);
#pragma unroll
      for (int n = 0; n < kWarpOutputs / 8; ++n) {
        cuda::mma_bf16(sums[m][n], x, w[n / 2][n % 2], w[n / 2][n % 2 + 2]);
      }
    }
  }
}

__device__ void write(const GroupedProduct<T>& p, const GroupedTile& tile, int warp_row,
                      int warp_output, int lane, const Sums& sums) {
#pragma unroll
  for (int i = 0; i < kWarpRows / 8; ++i) {
    const int64_t row = tile.first_row + warp_row + i * 8 + lane / 4;
    if (row >= tile.end_row) continue;
#pragma unroll
    for (int j = 0; j < kWarpOutputs / 4; ++j) {
      const int output = tile.first_output + warp_output + j / 2 * 8 + lane % 4 * 2 + j % 2;
      if (output < p.outputs) {
        p.y.row(row)[output] = __float2bfloat16_rn(sums[i / 2][j / 2][i % 2 * 2 + j % 2]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    tiles_kernel(const __grid_constant__ GroupedProduct<T> p, const T* weights) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto* stages = reinterpret_cast<Stage*>(storage);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int warp_row = warp / 4 * kWarpRows;
  const int warp_output = warp % 4 * kWarpOutputs;
  const int steps = (p.columns + kStep - 1) / kStep;
  TileOrder<kRows, kOutputs> order(p);
  GroupedTile tile;
  for (int64_t t = blockIdx.x; order.at(t, tile); t += gridDim.x) {
    Sums sums = {};
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) copy_stage(stages[s], p, weights, tile, s * kStep);
      cuda::commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
      cuda::wait_for_copies<kStages - 2>();
      __syncthreads();
      const int ahead = s + kStages - 1;
      if (ahead < steps) copy_stage(stages[ahead % kStages], p, weights, tile, ahead * kStep);
      cuda::commit_copies();
      multiply(stages[s % kStages], warp_row, warp_output, lane, sums);
    }
    cuda::wait_for_copies<0>();
    __syncthreads();  // the stages are read no more
    write(p, tile, warp_row, warp_output, lane, sums);
  }
}

}  // namespace

void grouped_matmul_tiles(Context& context, const GroupedProduct<T>& product, const T* weights) {
  constexpr auto kBytes = static_cast<int>(kStages * sizeof(Stage));
  constexpr int64_t kMostBlocks = 512;  // some for every multiprocessor
  const int64_t experts = product.last_expert - product.first_expert;
  const int64_t most_tiles =
      (cuda::ceil_divide(product.rows, kRows) + std::min(product.rows, experts)) *
      cuda::ceil_divide(product.outputs, kOutputs);
  cuda::allow_shared_memory(context, tiles_kernel, kBytes);
  tiles_kernel<<<static_cast<unsigned>(std::min(most_tiles, kMostBlocks)), kThreads, kBytes,
                 cuda::stream_of(context)>>>(product, weights);
  cuda::check_launch("grouped_matmul: tiles");
}

}  // namespace spb::ops
