#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "core/transfer.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

using cuda::Rows;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / cuda::kWarpSize;

__global__ void __launch_bounds__(kThreads)
    widen_kernel(Rows<const __nv_bfloat16> x, Rows<float> y, int64_t columns) {
  const __nv_bfloat16* from = x.row(blockIdx.x);
  float* to = y.row(blockIdx.x);
  for (int64_t c = threadIdx.x; c < columns; c += kThreads) to[c] = __bfloat162float(from[c]);
}

// An expert and its logit, in the order of choices: larger logits first, then lower experts, and a
// NaN behind every number.
struct Candidate {
  float logit;
  int expert;
};

__device__ bool before(const Candidate& a, const Candidate& b) {
  const bool a_bad = isnan(a.logit);
  const bool b_bad = isnan(b.logit);
  if (a_bad != b_bad) return b_bad;
  if (a.logit > b.logit || b.logit > a.logit) return a.logit > b.logit;
  return a.expert < b.expert;
}

__device__ Candidate first_of_warp(Candidate best) {
#pragma unroll
  for (int distance = cuda::kWarpSize / 2; distance > 0; distance /= 2) {
    const Candidate other{__shfl_xor_sync(cuda::kFullWarp, best.logit, distance),
                          __shfl_xor_sync(cuda::kFullWarp, best.expert, distance)};
    if (other.expert >= 0 && (best.expert < 0 || before(other, best))) best = other;
  }
  return best;
}

// The first of those that come after `last`; all count when that is no expert.
__device__ Candidate first_after(const float* logits, int num_experts, const Candidate& last,
                                 int lane) {
  Candidate best{0.0f, -1};
  for (int e = lane; e < num_experts; e += cuda::kWarpSize) {
    const Candidate candidate{logits[e], e};
    if (last.expert >= 0 && !before(last, candidate)) continue;
    if (best.expert < 0 || before(candidate, best)) best = candidate;
  }
  return first_of_warp(best);
}

// As in moe_router.cpp.
__device__ double unscaled(RouterScore score, double logit, double largest) {
  if (score == RouterScore::kSigmoid) return 1.0 / (1.0 + exp(-logit));
  return logit == largest ? 1.0 : exp(logit - largest);
}

__device__ double warp_sum(double value) {
#pragma unroll
  for (int distance = cuda::kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(cuda::kFullWarp, value, distance);
  }
  return value;
}

struct Router {
  Rows<const float> logits;
  Rows<int> experts;
  Rows<float> probabilities;
  int64_t tokens;
  int num_experts;
  int chosen;
  RouterScore score;
  bool renormalize;
};

// A warp for each token.
__global__ void __launch_bounds__(kThreads) route_kernel(const __grid_constant__ Router r) {
  cuda::let_next_begin();
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / cuda::kWarpSize;
  if (token >= r.tokens) return;
  cuda::wait_for_earlier();
  const float* logits = r.logits.row(token);
  int* experts = r.experts.row(token);
  Candidate last{0.0f, -1};
  double largest = 0;
  for (int j = 0; j < r.chosen; ++j) {
    last = first_after(logits, r.num_experts, last, lane);
    if (j == 0) largest = last.logit;
    if (lane == 0) experts[j] = last.expert;
  }
  __syncwarp();
  double divisor = 1;
  if (r.score == RouterScore::kSoftmax) {
    divisor = 0;
    for (int e = lane; e < r.num_experts; e += cuda::kWarpSize) {
      divisor += unscaled(r.score, logits[e], largest);
    }
    divisor = warp_sum(divisor);
  }
  if (r.renormalize) {
    double sum = 0;
    for (int j = lane; j < r.chosen; j += cuda::kWarpSize) {
      sum += unscaled(r.score, logits[experts[j]], largest);
    }
    sum = warp_sum(sum);
    if (sum != 0) divisor *= sum / divisor;  // not divisor = sum: a NaN stays
  }
  for (int j = lane; j < r.chosen; j += cuda::kWarpSize) {
    r.probabilities.row(token)[j] =
        static_cast<float>(unscaled(r.score, logits[experts[j]], largest) / divisor);
  }
}

}  // namespace

void moe_logits_cuda(Context& context, const MoeLogitsArgs& args) {
  const Arena::Scope scope(context.arena());
  ConstTensorView x = args.x;
  const int64_t tokens = x.shape()[0];
  if (x.dtype() == DType::kBF16 && args.router.dtype() != DType::kBF16 && tokens > 0) {
    const TensorView wide = context.arena().tensor(x.shape());
    widen_kernel<<<static_cast<unsigned>(tokens), kThreads, 0, cuda::stream_of(context)>>>(
        cuda::rows_of<__nv_bfloat16>(x), cuda::rows_of<float>(wide), x.shape()[1]);
    cuda::check_launch("moe_logits: widening");
    x = wide;
  }
  const MatmulTarget target{&args.router, {}, args.logits};
  matmul(context, {x, {&target, 1}});
}

void moe_route_cuda(Context& context, const MoeRouteArgs& args) {
  const Shape& shape = args.logits.shape();
  if (shape[0] == 0) return;
  const Router router{cuda::rows_of<float>(args.logits),
                      cuda::rows_of<int>(args.choices.experts),
                      cuda::rows_of<float>(args.choices.probabilities),
                      shape[0],
                      static_cast<int>(shape[1]),
                      static_cast<int>(args.choices.experts.shape()[1]),
                      args.score,
                      args.renormalize};
  const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(shape[0], kWarps)));
  cuda::launch_early(context, "moe_route", blocks, kThreads, 0, route_kernel, router);
}

}  // namespace spb::ops
