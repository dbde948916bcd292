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

// x, or the residual with x added to it; R is T without a residual.
template <int kPack, typename T, typename R>
__device__ Pack<R, kPack> add_residual(const Args<T, R>& args, int64_t row, int column) {
  const auto x = Pack<T, kPack>::load(args.x.row(row) + column);
  Pack<R, kPack> h;
  if (args.residual.data == nullptr) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) h.at[i] = cuda::from_float<R>(cuda::to_float(x.at[i]));
    return h;
  }
  h = Pack<R, kPack>::load(args.residual.row(row) + column);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    h.at[i] = cuda::from_float<R>(cuda::to_float(x.at[i]) + cuda::to_float(h.at[i]));
  }
  h.store(args.residual.row(row) + column);
  return h;
}

template <int kPack>
__device__ void read_weights(const float* from, float (&weights)[kPack]) {
  constexpr int kPart = kPack < 4 ? kPack : 4;
#pragma unroll
  for (int part = 0; part < kPack; part += kPart) {
    const auto pack = Pack<float, kPart>::load(from + part);
#pragma unroll
    for (int i = 0; i < kPart; ++i) weights[part + i] = pack.at[i];
  }
}

// Rows wait in shared memory, as they are rounded, so that x and the residual are read once.
template <bool kWholeBlock, int kPack, typename T, typename R>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const Args<T, R> args) {
  extern __shared__ __align__(16) unsigned char storage[];
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  constexpr int kWidth = kWholeBlock ? kThreads : cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int64_t row = kWholeBlock ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * kWarps + warp;
  if (row >= args.rows) return;
  R* kept = reinterpret_cast<R*>(storage) + (kWholeBlock ? 0 : warp * args.columns);
  float squares = 0;
  for (int c = lane * kPack; c < args.columns; c += kWidth * kPack) {
    const auto h = add_residual<kPack>(args, row, c);
    h.store(kept + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) squares += cuda::to_float(h.at[i]) * cuda::to_float(h.at[i]);
  }
  squares = kWholeBlock ? cuda::block_sum<kThreads>(squares) : cuda::warp_sum(squares);
  const float scale = rsqrtf(squares / static_cast<float>(args.columns) + args.eps);
  for (int c = lane * kPack; c < args.columns; c += kWidth * kPack) {
    const auto h = Pack<R, kPack>::load(kept + c);
    float weights[kPack];
    read_weights(args.weight + c, weights);
    Pack<T, kPack> y;
    if (args.accumulate) y = Pack<T, kPack>::load(args.y.row(row) + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float value = cuda::to_float(h.at[i]) * scale * weights[i];
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
      static_cast<int>(columns * static_cast<int64_t>(sizeof(R)) * (whole_block ? 1 : kWarps));
  if (bytes > 48 << 10) cuda::allow_shared_memory(context, kernel, bytes);
  const auto blocks = static_cast<unsigned>(whole_block ? rows : cuda::ceil_divide(rows, kWarps));
  cuda::launch_early(context, "rms_norm", dim3(blocks), kThreads, static_cast<size_t>(bytes),
                     kernel, kernel_args);
}

template <typename T, typename R>
void launch_packed(Context& context, const RmsNormArgs& args) {
  constexpr int kPack = 16 / (sizeof(T) > sizeof(R) ? sizeof(T) : sizeof(R));
  const bool packed = cuda::packs_fit(args.x, kPack) && cuda::packs_fit(args.y, kPack) &&
                      cuda::packs_fit(args.weight, 4) &&
                      (!args.residual.defined() || cuda::packs_fit(args.residual, kPack));
  packed ? launch<kPack, T, R>(context, args) : launch<1, T, R>(context, args);
}

}  // namespace

void rms_norm_cuda(Context& context, const RmsNormArgs& args) {
  if (args.x.shape()[0] == 0) return;
  cuda::with_activation(args.x.dtype(), [&](auto x) {
    cuda::with_activation(
        args.residual.defined() ? args.residual.dtype() : args.x.dtype(),
        [&](auto residual) { launch_packed<decltype(x), decltype(residual)>(context, args); });
  });
}

}  // namespace spb::ops
