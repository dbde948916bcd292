#include <cmath>
#include <numbers>

#include "core/cuda/pack.cuh"
#include "core/transfer.h"
#include "ops/rope/rope_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;

template <typename T>
struct Args {
  Rows<T> x;  // heads of all tokens
  const int64_t* positions;
  const float* factors;  // nullptr: none
  int64_t heads;
  int half;
  double log2_theta;
  bool interleaved;
};

__device__ inline float2 rotated(float a, float b, float2 turn) {
  return {a * turn.x - b * turn.y, a * turn.y + b * turn.x};
}

template <int kPack, typename T>
__device__ void rotate_halves(T* first, T* second, const float2* turns) {
  auto a = Pack<T, kPack>::load(first);
  auto b = Pack<T, kPack>::load(second);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float2 pair = rotated(cuda::to_float(a.at[i]), cuda::to_float(b.at[i]), turns[i]);
    a.at[i] = cuda::from_float<T>(pair.x);
    b.at[i] = cuda::from_float<T>(pair.y);
  }
  a.store(first);
  b.store(second);
}

template <int kPack, typename T>
__device__ void rotate_neighbors(T* pairs, const float2* turns) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    T* pair = pairs + 2 * i;
    const float2 turned = rotated(cuda::to_float(pair[0]), cuda::to_float(pair[1]), turns[i]);
    pair[0] = cuda::from_float<T>(turned.x);
    pair[1] = cuda::from_float<T>(turned.y);
  }
}

// One block for each token: its angles in double, once for all heads.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads) rope_kernel(const Args<T> args) {
  extern __shared__ float2 turns[];  // (cos, sin) of every pair
  const int64_t token = blockIdx.x;
  const auto position = static_cast<double>(args.positions[token]);
  for (int j = static_cast<int>(threadIdx.x); j < args.half; j += kThreads) {
    double angle = position * exp2(-args.log2_theta * j / args.half);
    if (args.factors != nullptr) angle /= args.factors[j];
    constexpr double kTurn = 2.0 * std::numbers::pi;
    const auto reduced = static_cast<float>(angle - kTurn * rint(angle / kTurn));
    sincosf(reduced, &turns[j].y, &turns[j].x);
  }
  __syncthreads();
  // Pairs are rotated kPack at once: neighbors of one head.
  const int packs = static_cast<int>(args.heads) * (args.half / kPack);
  for (int i = static_cast<int>(threadIdx.x); i < packs; i += kThreads) {
    const int j = i % (args.half / kPack) * kPack;
    T* head = args.x.row(token * args.heads + i / (args.half / kPack));
    if (args.interleaved) {
      rotate_neighbors<kPack>(head + 2 * j, turns + j);
    } else {
      rotate_halves<kPack>(head + j, head + args.half + j, turns + j);
    }
  }
}

template <int kPack, typename T>
void launch(Context& context, const Args<T>& args, int64_t tokens) {
  rope_kernel<kPack, T><<<static_cast<unsigned>(tokens), kThreads, args.half * sizeof(float2),
                          cuda::stream_of(context)>>>(args);
  cuda::check_launch("rope");
}

}  // namespace

void rope_cuda(Context& context, const RopeArgs& args) {
  const Arena::Scope scope(context.arena());
  const int64_t* positions = on_device(context, args.positions);
  const Shape& shape = args.x.shape();
  const auto half = static_cast<int>(shape[2] / 2);
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const Args<T> kernel_args{cuda::rows_of<T>(args.x),
                              positions,
                              args.factors.defined() ? args.factors.as<float>() : nullptr,
                              shape[1],
                              half,
                              std::log2(args.theta),
                              args.pairs == RopePairs::kInterleaved};
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packed = half % kPack == 0 && cuda::packs_fit(args.x, kPack);
    packed ? launch<kPack>(context, kernel_args, shape[0])
           : launch<1>(context, kernel_args, shape[0]);
  });
}

}  // namespace spb::ops
