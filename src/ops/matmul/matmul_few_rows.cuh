// What the kernels for few rows of x share: several weights in one launch, and the order of sums. A
// lane adds its units, 32 apart, one after the other; then the lanes are added. So a row of x gives
// the same bits whichever of them multiplies it, beside however many others.
#pragma once

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/matmul/matmul_cuda.h"
#include "ops/matmul/matmul_planes.cuh"
#include "ops/matmul/matmul_weight.h"

namespace spb::ops {

using cuda::Pack;
using cuda::Rows;

inline constexpr int kUnit = 8;

// Up to this many rows of x are multiplied by kernels that read every weight once.
inline constexpr int64_t kMaxFewRows = 8;

inline Planes planes_of(const MatmulWeight::Impl& weight) {
  const std::byte* codes = weight.owned.data();
  const int64_t bytes = code_bytes_per_row(weight.dtype, weight.columns) * weight.rows;
  return {codes, reinterpret_cast<const __half*>(codes + bytes), weight.rows, weight.columns};
}

// What a thread keeps of x: one unit of each of its rows.
template <typename T>
__device__ void read_x(const Rows<const T>& x, int64_t row, int64_t unit, float (&out)[kUnit]) {
  constexpr int kPack = cuda::kPackSize<T>;
#pragma unroll
  for (int part = 0; part < kUnit / kPack; ++part) {
    const auto pack = Pack<T, kPack>::load(x.row(row) + unit * kUnit + part * kPack);
#pragma unroll
    for (int i = 0; i < kPack; ++i) out[part * kPack + i] = cuda::to_float(pack.at[i]);
  }
}

// Matrices that one launch multiplies by the same x, their rows one after another.
inline constexpr int kMaxTargets = 4;
template <typename Y>
struct Targets {
  Planes weights[kMaxTargets];
  const float* biases[kMaxTargets];
  Rows<Y> y[kMaxTargets];
  bool accumulate[kMaxTargets];
  int64_t first_warp[kMaxTargets + 1];  // warps before those of a target
  int count;
};

// A sum with its bias goes to y, or is added to what is there.
template <typename Y>
__device__ void put(Y* y, float sum, bool accumulate) {
  *y = cuda::from_float<Y>(accumulate ? cuda::to_float(*y) + sum : sum);
}

// The lanes' sums of outputs `first` and those after it, for the first `rows` rows of y. Each lane
// puts one, so that what is added to is read at once.
template <int kRows, int kOutputs, typename Y>
__device__ void put_sums(const Targets<Y>& targets, int target, int64_t first, int rows,
                         const float (&sums)[kOutputs][kRows]) {
  static_assert(kOutputs * kRows <= cuda::kWarpSize);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  float own = 0;
#pragma unroll
  for (int i = 0; i < kOutputs * kRows; ++i) {
    const float sum = cuda::warp_sum(sums[i % kOutputs][i / kOutputs]);
    if (lane == i) own = sum;
  }
  const int m = lane / kOutputs;
  const int64_t output = first + lane % kOutputs;
  if (m >= min(rows, kRows) || output >= targets.weights[target].rows) return;
  const float* bias = targets.biases[target];
  put(targets.y[target].row(m) + output, own + (bias == nullptr ? 0.0f : bias[output]),
      targets.accumulate[target]);
}

// sums[n][m] += a unit of row n of the weight times that of row m of x, of which there are `rows`;
// those beyond are the last one.
template <int kRows, int kOutputs, typename T>
__device__ void add_products(const Rows<const T>& x, int rows, int64_t unit,
                             const float (&weights)[kOutputs][kUnit],
                             float (&sums)[kOutputs][kRows]) {
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    float in[kUnit];
    read_x(x, min(m, rows - 1), unit, in);
#pragma unroll
    for (int i = 0; i < kOutputs * kUnit; ++i) {
      sums[i / kUnit][m] += weights[i / kUnit][i % kUnit] * in[i % kUnit];
    }
  }
}

// Rows first_row .. first_row + rows of y; a warp computes `outputs` rows of a weight.
template <typename Y>
Targets<Y> targets_of(std::span<const MatmulTarget> from, int64_t first_row, int64_t rows,
                      int outputs) {
  Targets<Y> targets{};
  for (const MatmulTarget& target : from) {
    const int i = targets.count++;
    targets.weights[i] = planes_of(target.weight->impl());
    targets.biases[i] = target.bias.defined() ? target.bias.as<float>() : nullptr;
    targets.y[i] = cuda::rows_of<Y>(target.y.rows(first_row, rows));
    targets.accumulate[i] = target.accumulate;
    targets.first_warp[i + 1] =
        targets.first_warp[i] + cuda::ceil_divide(targets.weights[i].rows, outputs);
  }
  return targets;
}

// On Hopper weights flow through shared memory, ahead of the products and of the
// kernels before. Targets of one format and one dtype of y, at most kMaxTargets.
bool streams(Context& context, const MatmulArgs& args);
void matmul_streamed(Context& context, const MatmulArgs& args);

// The same with tensor cores, for x and weights in bf16, and up to twice kMaxFewRows rows of x.
// They add in another order than the kernels above, one for all numbers of rows.
bool streams_to_tensor_cores(Context& context, const MatmulArgs& args);
void matmul_tensor_cores(Context& context, const MatmulArgs& args);

// The same for weights in tiles, x in f32 or bf16.
bool fits_quantized_rows(const ConstTensorView& x);
void matmul_quantized_rows(Context& context, const MatmulArgs& args);

}  // namespace spb::ops
