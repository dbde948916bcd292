#include "core/cuda/pack.cuh"
#include "ops/swiglu/swiglu.cuh"
#include "ops/swiglu/swiglu_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;

// One thread for each pack, rows along x of the grid.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(Rows<const T> gate, Rows<const T> up, Rows<T> y, int columns) {
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int column = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kPack;
  if (column >= columns) return;
  const auto g = Pack<T, kPack>::load(gate.row(blockIdx.x) + column);
  const auto u = Pack<T, kPack>::load(up.row(blockIdx.x) + column);
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) result.at[i] = gated(g.at[i], u.at[i]);
  result.store(y.row(blockIdx.x) + column);
}

template <int kPack, typename T>
void launch(Context& context, const SwigluArgs& args) {
  const Shape& shape = args.gate.shape();
  const dim3 blocks(static_cast<unsigned>(shape[0]),
                    static_cast<unsigned>(cuda::ceil_divide(shape[1], kPack * kThreads)));
  cuda::launch_early(context, "swiglu", blocks, kThreads, 0, swiglu_kernel<kPack, T>,
                     cuda::rows_of<T>(args.gate), cuda::rows_of<T>(args.up),
                     cuda::rows_of<T>(args.y), static_cast<int>(shape[1]));
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
