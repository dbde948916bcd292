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

// Positions travel with the launch, as runs of consecutive ones: a copy from the host would wait
// for the stream, and a recorded launch can be played again. A prompt has one run for each
// sequence; the tokens of a recorded step are never more than the runs that fit. Parameters of a
// kernel hold 4 KiB.
constexpr int kMaxRuns = kMaxRecordedRows;

struct Positions {
  int64_t shift[kMaxRuns];  // position - token, of all tokens of a run
  int first_token[kMaxRuns];
  int runs;
  const int64_t* many;     // instead, of each token; device memory
  const int64_t* advance;  // Context::advance()

  __device__ int run_of(int token) const {
    int run = 0;
    for (int end = runs; end - run > 1;) {
      const int middle = (run + end) / 2;
      (first_token[middle] <= token ? run : end) = middle;
    }
    return run;
  }
  __device__ int64_t at(int token) const {
    const int64_t position = many != nullptr ? many[token] : token + shift[run_of(token)];
    return advance == nullptr ? position : position + *advance;
  }
};

template <typename T>
struct Args {
  Rows<T> x[2];  // heads of all tokens
  int heads[2];
  Positions positions;
  const float* factors;  // nullptr: none
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
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ Args<T> args) {
  extern __shared__ float2 turns[];  // (cos, sin) of every pair
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const auto token = static_cast<int>(blockIdx.x);
  const auto position = static_cast<double>(args.positions.at(token));
  for (int j = static_cast<int>(threadIdx.x); j < args.half; j += kThreads) {
    double angle = position * exp2(-args.log2_theta * j / args.half);
    if (args.factors != nullptr) angle /= args.factors[j];
    constexpr double kTurn = 2.0 * std::numbers::pi;
    const auto reduced = static_cast<float>(angle - kTurn * rint(angle / kTurn));
    sincosf(reduced, &turns[j].y, &turns[j].x);
  }
  __syncthreads();
  // Pairs are rotated kPack at once: neighbors of one head.
  const int packs_of_head = args.half / kPack;
  const int heads = args.heads[0] + args.heads[1];
  for (int i = static_cast<int>(threadIdx.x); i < heads * packs_of_head; i += kThreads) {
    const int j = i % packs_of_head * kPack;
    const int h = i / packs_of_head;
    const int side = h < args.heads[0] ? 0 : 1;
    const int64_t row = int64_t{token} * args.heads[side] + h - side * args.heads[0];
    T* head = args.x[side].row(row);
    if (args.interleaved) {
      rotate_neighbors<kPack>(head + 2 * j, turns + j);
    } else {
      rotate_halves<kPack>(head + j, head + args.half + j, turns + j);
    }
  }
}

Positions positions_of(Context& context, std::span<const int64_t> positions) {
  Positions out{};
  out.advance = context.advance();
  for (size_t i = 0; i < positions.size(); ++i) {
    if (i > 0 && positions[i] == positions[i - 1] + 1) continue;
    if (out.runs == kMaxRuns) {
      out.many = on_device(context, positions);
      break;
    }
    out.first_token[out.runs] = static_cast<int>(i);
    out.shift[out.runs++] = positions[i] - static_cast<int64_t>(i);
  }
  return out;
}

}  // namespace

void rope_cuda(Context& context, const RopeArgs& args) {
  const Arena::Scope scope(context.arena());
  const Shape& shape = args.x.shape();
  const bool two = args.also.defined();
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const Args<T> kernel_args{
        {cuda::rows_of<T>(args.x), cuda::rows_of<T>(two ? args.also : args.x)},
        {static_cast<int>(shape[1]), two ? static_cast<int>(args.also.shape()[1]) : 0},
        positions_of(context, args.positions),
        args.factors.defined() ? args.factors.as<float>() : nullptr,
        static_cast<int>(shape[2] / 2),
        std::log2(args.theta),
        args.pairs == RopePairs::kInterleaved};
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packed = kernel_args.half % kPack == 0 && cuda::packs_fit(args.x, kPack) &&
                        (!two || cuda::packs_fit(args.also, kPack));
    const auto kernel = packed ? rope_kernel<kPack, T> : rope_kernel<1, T>;
    cuda::launch_early(context, "rope", dim3(static_cast<unsigned>(shape[0])), kThreads,
                       static_cast<size_t>(kernel_args.half) * sizeof(float2), kernel, kernel_args);
  });
}

}  // namespace spb::ops
