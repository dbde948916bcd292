#include <type_traits>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int64_t kWarpColumns = 512;  // rows up to this width are one warp's work

template <typename T, typename R>
struct Args {
  Rows<const T> x;
  Rows<R> residual;  // data nullptr: none
  const float* weight;
  Rows<T> y;
  int64_t rows;
  int columns;
  float eps;
  bool accumulate;
};

// Row sums wait in shared memory, so that x and the residual are read once.
template <bool kWholeBlock, int kPack, typename T, typename R>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const Args<T, R> args) {
  extern __shared__ float storage[];
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  constexpr int kWidth = kWholeBlock ? kThreads : cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int64_t row = kWholeBlock ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * kWarps + warp;
  if (row >= args.rows) return;
  float* kept = kWholeBlock ? storage : storage + warp * args.columns;
  float squares = 0;
  for (int c = lane * kPack; c < args.columns; c += kWidth * kPack) {
    const auto x = Pack<T, kPack>::load(args.x.row(row) + c);
    Pack<R, kPack> h;
    if (args.residual.data != nullptr) h = Pack<R, kPack>::load(args.residual.row(row) + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float sum = cuda::to_float(x.at[i]);
      if (args.residual.data != nullptr) {
        sum += cuda::to_float(h.at[i]);
        h.at[i] = cuda::from_float<R>(sum);
        sum = cuda::to_float(h.at[i]);
      }
      kept[c + i] = sum;
      squares += sum * sum;
    }
    if (args.residual.data != nullptr) h.store(args.residual.row(row) + c);
  }
  squares = kWholeBlock ? cuda::block_sum<kThreads>(squares) : cuda::warp_sum(squares);
  const float scale = rsqrtf(squares / static_cast<float>(args.columns) + args.eps);
  for (int c = lane * kPack; c < args.columns; c += kWidth * kPack) {
    Pack<T, kPack> y;
    if (args.accumulate) y = Pack<T, kPack>::load(args.y.row(row) + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float value = kept[c + i] * scale * args.weight[c + i];
      if (args.accumulate) value += cuda::to_float(y.at[i]);
      y.at[i] = cuda::from_float<T>(value);
    }
    y.store(args.y.row(row) + c);
  }
}

template <int kPack, typename T, typename R>
void launch(Context& context, const RmsNormArgs& args) {
  const int64_t rows = args.x.shape()[0];
  const int64_t columns = args.x.shape()[1];
  const Args<T, R> kernel_args{
      cuda::rows_of<T>(args.x),
      args.residual.defined() ? cuda::rows_of<R>(args.residual) : Rows<R>{nullptr, 0},
      args.weight.as<float>(),
      cuda::rows_of<T>(args.y),
      rows,
      static_cast<int>(columns),
      args.eps,
      args.accumulate};
  const bool whole_block = columns > kWarpColumns;
  const auto kernel =
      whole_block ? rms_norm_kernel<true, kPack, T, R> : rms_norm_kernel<false, kPack, T, R>;
  const auto bytes =
      static_cast<int>(columns * static_cast<int64_t>(sizeof(float)) * (whole_block ? 1 : kWarps));
  if (bytes > 48 << 10) cuda::allow_shared_memory(kernel, bytes);
  const auto blocks = static_cast<unsigned>(whole_block ? rows : cuda::ceil_divide(rows, kWarps));
  cuda::launch_early(context, "rms_norm", dim3(blocks), kThreads, static_cast<size_t>(bytes),
                     kernel, kernel_args);
}

template <typename T, typename R>
void launch_packed(Context& context, const RmsNormArgs& args) {
  constexpr int kPack = 16 / (sizeof(T) > sizeof(R) ? sizeof(T) : sizeof(R));
  const bool packed = cuda::packs_fit(args.x, kPack) && cuda::packs_fit(args.y, kPack) &&
                      (!args.residual.defined() || cuda::packs_fit(args.residual, kPack));
  packed ? launch<kPack, T, R>(context, args) : launch<1, T, R>(context, args);
}

}  // namespace

void rms_norm_cuda(Context& context, const RmsNormArgs& args) {
  if (args.x.shape()[0] == 0) return;
  cuda::with_activation(args.x.dtype(), [&](auto x) {
    cuda::with_activation(
        args.residual.defined() ? args.residual.dtype() : DType::kF32,
        [&](auto residual) { launch_packed<decltype(x), decltype(residual)>(context, args); });
  });
}

}  // namespace spb::ops
