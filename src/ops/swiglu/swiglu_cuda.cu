#include "core/cuda/pack.cuh"
#include "ops/swiglu/swiglu_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;

// One thread for each pack; large negative gates give exp(+inf) below the line, so 0.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(Rows<const T> gate, Rows<const T> up, Rows<T> y, int64_t rows, int64_t packs) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * packs) return;
  const int64_t row = index / packs;
  const int64_t column = index % packs * kPack;
  const auto g = Pack<T, kPack>::load(gate.row(row) + column);
  const auto u = Pack<T, kPack>::load(up.row(row) + column);
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float x = cuda::to_float(g.at[i]);
    const float activated = x == -INFINITY ? 0.0f : x / (1.0f + expf(-x));
    result.at[i] = cuda::from_float<T>(activated * cuda::to_float(u.at[i]));
  }
  result.store(y.row(row) + column);
}

template <int kPack, typename T>
void launch(Context& context, const SwigluArgs& args) {
  const int64_t rows = args.gate.shape()[0];
  const int64_t packs = args.gate.shape()[1] / kPack;
  const auto blocks = static_cast<unsigned>(cuda::ceil_divide(rows * packs, kThreads));
  swiglu_kernel<kPack, T><<<blocks, kThreads, 0, cuda::stream_of(context)>>>(
      cuda::rows_of<T>(args.gate), cuda::rows_of<T>(args.up), cuda::rows_of<T>(args.y), rows,
      packs);
  cuda::check_launch("swiglu");
}

}  // namespace

void swiglu_cuda(Context& context, const SwigluArgs& args) {
  cuda::with_activation(args.gate.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packed = cuda::packs_fit(args.gate, kPack) && cuda::packs_fit(args.up, kPack) &&
                        cuda::packs_fit(args.y, kPack);
    packed ? launch<kPack, T>(context, args) : launch<1, T>(context, args);
  });
}

}  // namespace spb::ops
