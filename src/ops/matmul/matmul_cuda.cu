#include "ops/matmul/matmul_cuda.h"

#include "core/cuda/blas.h"
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/matmul/matmul_few_rows.cuh"
#include "ops/matmul/matmul_quantized_tiles.cuh"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / cuda::kWarpSize;

// The beginning of a warp's rows of the weight, which no kernel writes, while x is still computed.
template <DType kDtype, int kOutputs>
__device__ void prefetch_rows(const Planes& w, int64_t first, int lane) {
  constexpr int64_t kLine = 128;  // bytes
  const int64_t row_bytes = code_bytes_per_row(kDtype, w.columns);
#pragma unroll
  for (int n = 0; n < kOutputs; ++n) {
    const int64_t row = min(first + n, w.rows - 1);
    if (lane * kLine < row_bytes) cuda::prefetch(w.codes + row * row_bytes + lane * kLine);
  }
}

// A warp computes kOutputs rows of one weight for kRows rows of x.
template <DType kDtype, int kRows, int kOutputs, typename T, typename Y>
__global__ void __launch_bounds__(kThreads)
    few_rows_kernel(const __grid_constant__ Targets<Y> targets, Rows<const T> x) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / cuda::kWarpSize;
  if (warp >= targets.first_warp[targets.count]) return cuda::wait_for_earlier();
  int t = 0;
  while (warp >= targets.first_warp[t + 1]) ++t;
  const Planes w = targets.weights[t];
  const int64_t first = (warp - targets.first_warp[t]) * kOutputs;
  cuda::let_next_begin();
  prefetch_rows<kDtype, kOutputs>(w, first, lane);
  cuda::wait_for_earlier();
  float sums[kOutputs][kRows] = {};
#pragma unroll 4
  for (int64_t unit = lane; unit < w.columns / kUnit; unit += cuda::kWarpSize) {
    float weights[kOutputs][kUnit];
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) {
      read_unit<kDtype>(w, min(first + n, w.rows - 1), unit, weights[n]);
    }
    add_products(x, kRows, unit, weights, sums);
  }
  put_sums(targets, t, first, kRows, sums);
}

template <DType kDtype, int kRows, int kOutputs, typename T, typename Y>
void launch_outputs(Context& context, ConstTensorView x, std::span<const MatmulTarget> from,
                    int64_t first_row) {
  const Targets<Y> targets = targets_of<Y>(from, first_row, kRows, kOutputs);
  const int64_t warps = targets.first_warp[targets.count];
  cuda::launch_early(context, "matmul",
                     dim3(static_cast<unsigned>(cuda::ceil_divide(warps, kWarps))), kThreads, 0,
                     few_rows_kernel<kDtype, kRows, kOutputs, T, Y>, targets,
                     cuda::rows_of<T>(x.rows(first_row, kRows)));
}

// More outputs for each warp share the reading of x, but leave fewer warps to the device; a sum
// does not depend on the choice.
template <DType kDtype, int kRows, typename T, typename Y>
void launch_few_rows(Context& context, ConstTensorView x, std::span<const MatmulTarget> targets,
                     int64_t first_row) {
  constexpr int64_t kManyRows = 12000;
  constexpr int64_t kSomeRows = 2000;
  int64_t rows = 0;
  for (const MatmulTarget& target : targets) rows += target.weight->rows();
  if constexpr (kRows == 1) {
    if (rows >= kManyRows) {
      return launch_outputs<kDtype, kRows, 4, T, Y>(context, x, targets, first_row);
    }
  }
  if (rows >= kSomeRows) {
    launch_outputs<kDtype, kRows, 2, T, Y>(context, x, targets, first_row);
  } else {
    launch_outputs<kDtype, kRows, 1, T, Y>(context, x, targets, first_row);
  }
}

// In steps of 4, 2 and 1 rows, so that a row's sum never depends on how many there are.
template <DType kDtype, typename T, typename Y>
void multiply_few_rows(Context& context, ConstTensorView x, std::span<const MatmulTarget> targets) {
  const int64_t rows = x.shape().rows();
  for (int64_t done = 0; done < rows;) {
    const int64_t step = rows - done >= 4 ? 4 : (rows - done >= 2 ? 2 : 1);
    if (step == 4) launch_few_rows<kDtype, 4, T, Y>(context, x, targets, done);
    if (step == 2) launch_few_rows<kDtype, 2, T, Y>(context, x, targets, done);
    if (step == 1) launch_few_rows<kDtype, 1, T, Y>(context, x, targets, done);
    done += step;
  }
}

template <DType kDtype, bool kTiles, typename T>
__global__ void __launch_bounds__(kThreads) expand_kernel(Planes w, T* out) {
  const int64_t units = w.columns / kUnit;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= w.rows * units) return;
  float values[kUnit];
  if constexpr (kTiles) {
    read_tile_unit<kDtype>(w, index / units, index % units, values);
  } else {
    read_unit<kDtype>(w, index / units, index % units, values);
  }
  Pack<T, kUnit> pack;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) pack.at[i] = cuda::from_float<T>(values[i]);
  *reinterpret_cast<Pack<T, kUnit>*>(out + index * kUnit) = pack;
}

template <typename Y>
__global__ void __launch_bounds__(kThreads)
    round_bias_kernel(const float* bias, Y* out, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = cuda::from_float<Y>(bias[i]);
}

// The weight in dtype T: itself, or a copy in the arena.
template <typename T>
const void* expanded(Context& context, const MatmulWeight::Impl& weight, DType dtype) {
  const Planes w = planes_of(weight);
  if (weight.dtype == dtype) return w.codes;
  T* out = context.arena().allocate<T>(w.rows * w.columns);
  const auto blocks =
      static_cast<unsigned>(cuda::ceil_divide(w.rows * (w.columns / kUnit), kThreads));
  cuda::with_row_format(weight.dtype, [&]<DType kDtype>() {
    const auto kernel = weight.in_tiles ? expand_kernel<kDtype, !is_float(kDtype), T>
                                        : expand_kernel<kDtype, false, T>;
    kernel<<<blocks, kThreads, 0, cuda::stream_of(context)>>>(w, out);
  });
  cuda::check_launch("matmul: expanding weights");
  return out;
}

const void* bias_for(Context& context, const MatmulTarget& target) {
  if (!target.bias.defined()) return nullptr;
  if (target.y.dtype() == DType::kF32) return target.bias.data();
  const int64_t count = target.bias.shape().elements();
  auto* out = context.arena().allocate<__nv_bfloat16>(count);
  round_bias_kernel<<<static_cast<unsigned>(cuda::ceil_divide(count, kThreads)), kThreads, 0,
                      cuda::stream_of(context)>>>(target.bias.as<float>(), out, count);
  cuda::check_launch("matmul: rounding a bias");
  return out;
}

template <typename T>
void multiply_many_rows(Context& context, ConstTensorView x, const MatmulTarget& target) {
  const Arena::Scope scope(context.arena());
  const MatmulWeight::Impl& weight = target.weight->impl();
  cuda::DenseProduct product;
  product.w = expanded<T>(context, weight, x.dtype());
  product.bias = bias_for(context, target);
  product.x = x.data();
  product.y = target.y.data();
  product.dtype = x.dtype();
  product.y_dtype = target.y.dtype();
  product.accumulate = target.accumulate;
  product.m = x.shape().rows();
  product.n = weight.rows;
  product.k = weight.columns;
  product.x_stride = x.row_stride_bytes() / static_cast<int64_t>(sizeof(T));
  product.w_stride = weight.columns;
  product.y_stride = target.y.row_stride_bytes() / block_bytes(target.y.dtype());
  context.stream().blas().multiply(context.stream().handle(), product);
}

// Targets of one format and layout and one dtype of y, at most kMaxTargets.
void multiply_alike(Context& context, const MatmulArgs& args) {
  if (streams_to_tensor_cores(context, args)) return matmul_tensor_cores(context, args);
  const MatmulTarget& first = args.targets[0];
  const bool in_tiles = first.weight->impl().in_tiles;
  if (in_tiles && fits_quantized_rows(args.x)) return matmul_quantized_rows(context, args);
  const bool few = args.x.shape().rows() <= kMaxFewRows;
  if (few && streams(context, args)) return matmul_streamed(context, args);
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (!few) {
      for (const MatmulTarget& target : args.targets) {
        multiply_many_rows<T>(context, args.x, target);
      }
      return;
    }
    cuda::with_row_format(first.weight->dtype(), [&]<DType kDtype>() {
      if (first.y.dtype() == args.x.dtype()) {
        multiply_few_rows<kDtype, T, T>(context, args.x, args.targets);
      } else {
        multiply_few_rows<kDtype, T, float>(context, args.x, args.targets);
      }
    });
  });
}

}  // namespace

void matmul_cuda(Context& context, const MatmulArgs& args) {
  const auto alike = [](const MatmulTarget& a, const MatmulTarget& b) {
    return a.weight->dtype() == b.weight->dtype() && a.y.dtype() == b.y.dtype() &&
           a.weight->impl().in_tiles == b.weight->impl().in_tiles;
  };
  for (size_t begin = 0; begin < args.targets.size();) {
    const MatmulTarget& first = args.targets[begin];
    size_t end = begin + 1;
    while (end < args.targets.size() && end - begin < kMaxTargets &&
           alike(first, args.targets[end])) {
      ++end;
    }
    multiply_alike(context, {args.x, args.targets.subspan(begin, end - begin)});
    begin = end;
  }
}

}  // namespace spb::ops
