#include "core/cuda/pack.cuh"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 128;

// Packs along x of the block, rows along x of the grid.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const int64_t* token_of, Rows<const T> x, Rows<T> grouped, int columns) {
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int64_t token = token_of[blockIdx.x];
  T* to = grouped.row(blockIdx.x);
  for (int c = static_cast<int>(threadIdx.x) * kPack; c < columns; c += kThreads * kPack) {
    Pack<T, kPack> pack{};
    if (token >= 0) pack = Pack<T, kPack>::load(x.row(token) + c);
    pack.store(to + c);
  }
}

template <typename T>
struct Scatter {
  const int64_t* row_of;
  Rows<const T> rows;
  Rows<const float> probabilities;
  Rows<T> y;
  int chosen;
  int columns;
};

// A block for each token.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads) scatter_kernel(const __grid_constant__ Scatter<T> s) {
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int64_t token = blockIdx.x;
  const int64_t* row_of = s.row_of + token * s.chosen;
  const float* probabilities = s.probabilities.row(token);
  for (int c = static_cast<int>(threadIdx.x) * kPack; c < s.columns; c += kThreads * kPack) {
    const auto before = Pack<T, kPack>::load(s.y.row(token) + c);
    float sums[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums[i] = cuda::to_float(before.at[i]);
    for (int j = 0; j < s.chosen; ++j) {
      const int64_t row = row_of[j];
      if (row < 0) continue;
      const auto from = Pack<T, kPack>::load(s.rows.row(row) + c);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sums[i] += probabilities[j] * cuda::to_float(from.at[i]);
    }
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) result.at[i] = cuda::from_float<T>(sums[i]);
    result.store(s.y.row(token) + c);
  }
}

template <int kPack, typename T>
void gather(Context& context, const MoeGatherArgs& args) {
  const dim3 blocks(static_cast<unsigned>(args.plan.rows()));
  cuda::launch_early(context, "moe_gather", blocks, kThreads, 0, gather_kernel<kPack, T>,
                     args.plan.token_of.data(), cuda::rows_of<T>(args.x),
                     cuda::rows_of<T>(args.grouped), static_cast<int>(args.x.shape()[1]));
}

template <int kPack, typename T>
void scatter(Context& context, const MoeScatterArgs& args) {
  const Scatter<T> s{args.plan.row_of.data(),
                     cuda::rows_of<T>(args.rows),
                     cuda::rows_of<float>(args.probabilities),
                     cuda::rows_of<T>(args.y),
                     static_cast<int>(args.plan.experts_per_token),
                     static_cast<int>(args.y.shape()[1])};
  const dim3 blocks(static_cast<unsigned>(args.plan.num_tokens));
  cuda::launch_early(context, "moe_scatter", blocks, kThreads, 0, scatter_kernel<kPack, T>, s);
}

}  // namespace

void moe_gather_cuda(Context& context, const MoeGatherArgs& args) {
  if (args.plan.rows() == 0) return;
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packed = cuda::packs_fit(args.x, kPack) && cuda::packs_fit(args.grouped, kPack);
    packed ? gather<kPack, T>(context, args) : gather<1, T>(context, args);
  });
}

void moe_scatter_cuda(Context& context, const MoeScatterArgs& args) {
  if (args.plan.num_tokens == 0) return;
  cuda::with_activation(args.y.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packed = cuda::packs_fit(args.rows, kPack) && cuda::packs_fit(args.y, kPack);
    packed ? scatter<kPack, T>(context, args) : scatter<1, T>(context, args);
  });
}

}  // namespace spb::ops
