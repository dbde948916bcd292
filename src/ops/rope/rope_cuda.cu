#include <cmath>
#include <numbers>

#include "core/cuda/pack.cuh"
#include "core/transfer.h"
#include "ops/rope/rope_cuda.h"

namespace spb::ops {
namespace {

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

// One block for each token: its angles in double, once for all heads.
template <typename T>
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
  const int64_t pairs = args.heads * args.half;
  for (int64_t i = threadIdx.x; i < pairs; i += kThreads) {
    T* head = args.x.row(token * args.heads + i / args.half);
    const int j = static_cast<int>(i % args.half);
    T* first = head + (args.interleaved ? 2 * j : j);
    T* second = args.interleaved ? first + 1 : first + args.half;
    const float a = cuda::to_float(*first);
    const float b = cuda::to_float(*second);
    *first = cuda::from_float<T>(a * turns[j].x - b * turns[j].y);
    *second = cuda::from_float<T>(a * turns[j].y + b * turns[j].x);
  }
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
    rope_kernel<T><<<static_cast<unsigned>(shape[0]), kThreads, half * sizeof(float2),
                     cuda::stream_of(context)>>>(kernel_args);
    cuda::check_launch("rope");
  });
}

}  // namespace spb::ops
