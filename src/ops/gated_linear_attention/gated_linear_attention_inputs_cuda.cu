#include "core/cuda/pack.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_inputs_cuda.h"

namespace spb::ops {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;

__device__ float softplus(float z) { return fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z))); }

__device__ float feature(FeatureMap map, float x) {
  if (map == FeatureMap::kSigmoid) return 1.0f / (1.0f + expf(-x));
  return x < 0.0f ? 0.0f : x;  // NaN stays NaN
}

template <typename T, typename G>
struct Args {
  Rows<T> q, k;
  Rows<G> g;
  int64_t q_rows, k_rows, g_rows;
  int q_columns, k_columns, g_columns;
  unsigned first;  // of q, k and g that is there
  float factor;    // 1 / gate_logit_normalizer
  FeatureMap map;
  bool tied;
};

template <int kPack, typename T, typename Map>
__device__ void map_pack(T* at, Map map) {
  auto pack = Pack<T, kPack>::load(at);
#pragma unroll
  for (int i = 0; i < kPack; ++i) pack.at[i] = cuda::from_float<T>(map(cuda::to_float(pack.at[i])));
  pack.store(at);
}

// The pack of this thread among rows of whole packs.
struct Place {
  int64_t row;
  int column;

  __device__ Place(int columns, int pack) {
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int packs = columns / pack;
    row = index / packs;
    column = static_cast<int>(index % packs) * pack;
  }
};

// One pack for each thread; along y of the grid q and k, if they are there, and, where it is not
// tied to k, the gate.
template <int kPack, typename T, typename G>
__global__ void __launch_bounds__(kThreads) inputs_kernel(const Args<T, G> args) {
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const auto to_feature = [&](float x) { return feature(args.map, x); };
  const unsigned which = args.first + blockIdx.y;
  if (which == 0) {
    const Place at(args.q_columns, kPack);
    if (at.row < args.q_rows) map_pack<kPack>(args.q.row(at.row) + at.column, to_feature);
  } else if (which == 1) {
    const Place at(args.k_columns, kPack);
    if (at.row >= args.k_rows) return;
    T* k = args.k.row(at.row) + at.column;
    if (args.tied) {
      const auto z = Pack<T, kPack>::load(k);
      Pack<G, kPack> g;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        g.at[i] = cuda::from_float<G>(-softplus(cuda::to_float(z.at[i])));
      }
      g.store(args.g.row(at.row) + at.column);
    }
    map_pack<kPack>(k, to_feature);
  } else {
    const Place at(args.g_columns, kPack);
    if (at.row >= args.g_rows) return;
    map_pack<kPack>(args.g.row(at.row) + at.column,
                    [&](float x) { return -softplus(-x) * args.factor; });
  }
}

}  // namespace

void gated_linear_attention_inputs_cuda(Context& context,
                                        const GatedLinearAttentionInputsArgs& args) {
  const bool gate_only = !args.q.defined() && !args.k.defined();
  const int64_t most = std::max({gate_only ? 0 : args.q.shape().elements(),
                                 gate_only ? 0 : args.k.shape().elements(),
                                 args.tied_gate ? 0 : args.g.shape().elements()});
  if (most == 0) return;
  cuda::with_activation(args.q.dtype(), [&](auto activation) {
    cuda::with_activation(args.g.dtype(), [&](auto gate) {
      using T = decltype(activation);
      using G = decltype(gate);
      constexpr int kPack = 16 / static_cast<int>(std::max(sizeof(T), sizeof(G)));
      const bool packed =
          cuda::packs_fit(args.g, kPack) &&
          (gate_only || (cuda::packs_fit(args.q, kPack) && cuda::packs_fit(args.k, kPack)));
      const Args<T, G> kernel_args{cuda::rows_of<T>(args.q),
                                   cuda::rows_of<T>(args.k),
                                   cuda::rows_of<G>(args.g),
                                   args.q.shape().rows(),
                                   args.k.shape().rows(),
                                   args.g.shape().rows(),
                                   static_cast<int>(args.q.shape().last()),
                                   static_cast<int>(args.k.shape().last()),
                                   static_cast<int>(args.g.shape().last()),
                                   gate_only ? 2u : 0u,
                                   1.0f / args.gate_logit_normalizer,
                                   args.feature_map,
                                   args.tied_gate};
      const int64_t packs = most / (packed ? kPack : 1);
      const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(packs, kThreads)),
                        gate_only ? 1 : (args.tied_gate ? 2 : 3));
      const auto kernel = packed ? inputs_kernel<kPack, T, G> : inputs_kernel<1, T, G>;
      cuda::launch_early(context, "gated_linear_attention_inputs", blocks, kThreads, 0, kernel,
                         kernel_args);
    });
  });
}

}  // namespace spb::ops
