// Many rows of f32: tiles of 64 rows by 64 outputs on ordinary units, summed in order of columns.
#include <algorithm>

#include "ops/moe/grouped_matmul_float.cuh"
#include "ops/moe/grouped_matmul_tiles.cuh"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // rows and outputs
constexpr int kStep = 32;  // columns
constexpr int kOwn = 4;    // rows and outputs of a thread

struct Stage {
  float x[kStep][kTile + 4];
  float w[kStep][kTile + 4];
};

// A thread brings one unit of x and one of the weight.
template <DType kDtype>
__device__ void copy_stage(Stage& stage, const GroupedProduct<float>& p, const Planes& weights,
                           const GroupedTile& tile, int column) {
  constexpr int kUnits = kStep / kUnit;
  const int row = static_cast<int>(threadIdx.x) / kUnits;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
  const int first = column + unit * kUnit;
  float x[kUnit] = {};
  float w[kUnit] = {};
  if (first < p.columns && tile.first_row + row < tile.end_row) {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[i] = p.x.row(tile.first_row + row)[first + i];
  }
  if (first < p.columns && tile.first_output + row < p.outputs) {
    const int64_t weight = int64_t{tile.expert} * p.outputs + tile.first_output + row;
    read_unit<kDtype>(weights, weight, first / kUnit, w);
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    stage.x[unit * kUnit + i][row] = x[i];
    stage.w[unit * kUnit + i][row] = w[i];
  }
}

__device__ void multiply(const Stage& stage, int row, int output, float (&sums)[kOwn][kOwn]) {
#pragma unroll 8
  for (int c = 0; c < kStep; ++c) {
    const float4 x = *reinterpret_cast<const float4*>(&stage.x[c][row]);
    const float4 w = *reinterpret_cast<const float4*>(&stage.w[c][output]);
    const float rows[kOwn] = {x.x, x.y, x.z, x.w};
    const float outputs[kOwn] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < kOwn * kOwn; ++i) {
      sums[i / kOwn][i % kOwn] += rows[i / kOwn] * outputs[i % kOwn];
    }
  }
}

template <DType kDtype>
__global__ void __launch_bounds__(kThreads)
    float_kernel(const __grid_constant__ GroupedProduct<float> p, Planes weights) {
  __shared__ Stage stage;
  const int row = static_cast<int>(threadIdx.x) / (kTile / kOwn) * kOwn;
  const int output = static_cast<int>(threadIdx.x) % (kTile / kOwn) * kOwn;
  TileOrder<kTile, kTile> order(p);
  GroupedTile tile;
  for (int64_t t = blockIdx.x; order.at(t, tile); t += gridDim.x) {
    float sums[kOwn][kOwn] = {};
    for (int column = 0; column < p.columns; column += kStep) {
      __syncthreads();
      copy_stage<kDtype>(stage, p, weights, tile, column);
      __syncthreads();
      multiply(stage, row, output, sums);
    }
    for (int i = 0; i < kOwn * kOwn; ++i) {
      const int64_t r = tile.first_row + row + i / kOwn;
      const int n = tile.first_output + output + i % kOwn;
      if (r < tile.end_row && n < p.outputs) p.y.row(r)[n] = sums[i / kOwn][i % kOwn];
    }
  }
}

}  // namespace

void grouped_matmul_float(Context& context, const GroupedMatmulArgs& args,
                          const GroupedMatmulTarget& target) {
  constexpr int64_t kMostBlocks = 1024;  // several for every multiprocessor
  const auto experts = static_cast<int>(args.offsets.size()) - 1;
  const int64_t rows = args.x.shape()[0];
  const GroupedProduct<float> product{cuda::rows_of<float>(args.x),
                                      cuda::rows_of<float>(target.y),
                                      args.offsets.data(),
                                      0,
                                      experts,
                                      rows,
                                      static_cast<int>(target.y.shape()[1]),
                                      static_cast<int>(args.x.shape()[1])};
  const int64_t most_tiles = (cuda::ceil_divide(rows, kTile) + std::min<int64_t>(rows, experts)) *
                             cuda::ceil_divide(product.outputs, kTile);
  const auto blocks = static_cast<unsigned>(std::min(most_tiles, kMostBlocks));
  const Planes weights = expert_planes(target);
  cuda::with_row_format(target.weights[0]->dtype(), [&]<DType kDtype>() {
    float_kernel<kDtype><<<blocks, kThreads, 0, cuda::stream_of(context)>>>(product, weights);
  });
  cuda::check_launch("grouped_matmul: f32");
}

}  // namespace spb::ops
