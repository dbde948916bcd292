#include "core/cuda/pack.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_inputs_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;

__device__ float softplus(float z) { return fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z))); }

// max(x, 0), but NaN stays NaN
struct Rectify {
  __device__ float operator()(float x) const { return x < 0.0f ? 0.0f : x; }
};
struct Squash {
  __device__ float operator()(float x) const { return 1.0f / (1.0f + expf(-x)); }
};
struct LogGate {
  float factor;
  __device__ float operator()(float x) const { return -softplus(-x) * factor; }
};
struct TiedGate {
  __device__ float operator()(float x) const { return -softplus(x); }
};

// to = map(from), one pack for each thread, rows along x of the grid
template <int kPack, typename From, typename To, typename Map>
__global__ void __launch_bounds__(kThreads)
    map_kernel(Rows<const From> from, Rows<To> to, int columns, Map map) {
  const int column = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kPack;
  if (column >= columns) return;
  const auto x = Pack<From, kPack>::load(from.row(blockIdx.x) + column);
  Pack<To, kPack> y;
#pragma unroll
  for (int i = 0; i < kPack; ++i) y.at[i] = cuda::from_float<To>(map(cuda::to_float(x.at[i])));
  y.store(to.row(blockIdx.x) + column);
}

template <typename Map>
void apply(Context& context, ConstTensorView from, TensorView to, Map map) {
  const int64_t rows = from.shape().rows();
  const int64_t columns = from.shape().last();
  if (rows * columns == 0) return;
  const auto launch = [&]<int kPack, typename From, typename To>() {
    const dim3 blocks(static_cast<unsigned>(rows),
                      static_cast<unsigned>(cuda::ceil_divide(columns, kPack * kThreads)));
    map_kernel<kPack, From, To><<<blocks, kThreads, 0, cuda::stream_of(context)>>>(
        cuda::rows_of<From>(from), cuda::rows_of<To>(to), static_cast<int>(columns), map);
  };
  cuda::with_activation(from.dtype(), [&](auto from_type) {
    cuda::with_activation(to.dtype(), [&](auto to_type) {
      using From = decltype(from_type);
      using To = decltype(to_type);
      constexpr int kPack = 16 / static_cast<int>(std::max(sizeof(From), sizeof(To)));
      if (cuda::packs_fit(from, kPack) && cuda::packs_fit(to, kPack)) {
        launch.template operator()<kPack, From, To>();
      } else {
        launch.template operator()<1, From, To>();
      }
    });
  });
  cuda::check_launch("gated_linear_attention_inputs");
}

}  // namespace

void gated_linear_attention_inputs_cuda(Context& context,
                                        const GatedLinearAttentionInputsArgs& args) {
  const auto map_features = [&](TensorView x) {
    args.feature_map == FeatureMap::kRelu ? apply(context, x, x, Rectify())
                                          : apply(context, x, x, Squash());
  };
  map_features(args.q);
  if (args.tied_gate) {
    apply(context, args.k, args.g, TiedGate());
  } else {
    apply(context, args.g, args.g, LogGate{1.0f / args.gate_logit_normalizer});
  }
  map_features(args.k);
}

}  // namespace spb::ops
