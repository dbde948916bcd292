// Keys and values as bf16, for the kernels of prompts: what they multiply on tensor cores is read
// by many queries, so that widening codes once costs little.
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops {
namespace {

using cuda::Pack;

constexpr int kThreads = 256;
constexpr int kPack = 8;

// Slots of one side of a source, `first`, first + 1, ... modulo the capacity.
struct Slots {
  const std::byte* from;  // [heads, capacity, head_dim]
  const float* scales;    // [heads, capacity] with i8
  __nv_bfloat16* to;      // as from
  int64_t first;
  int64_t count;
  int64_t capacity;
  int head_dim;
};

// A pack for each thread; heads along y of the grid.
template <typename Element>
__global__ void __launch_bounds__(kThreads) expand_kernel(const Slots slots) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int packs = slots.head_dim / kPack;
  if (index >= slots.count * packs) return;
  const int64_t slot = (slots.first + index / packs) % slots.capacity;
  const int64_t row = blockIdx.y * slots.capacity + slot;
  const int64_t at = row * slots.head_dim + index % packs * kPack;
  const float scale = slots.scales == nullptr ? 1.0f : slots.scales[row];
  const auto* from = reinterpret_cast<const Element*>(slots.from) + at;
  Pack<__nv_bfloat16, kPack> out;
  constexpr int kPart = sizeof(Element) == 4 ? 4 : kPack;
#pragma unroll
  for (int part = 0; part < kPack; part += kPart) {
    const auto in = Pack<Element, kPart>::load(from + part);
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      out.at[part + i] = __float2bfloat16_rn(scale * static_cast<float>(in.at[i]));
    }
  }
  out.store(slots.to + at);
}

ConstTensorView expand(Context& context, ConstTensorView from, ConstTensorView scales,
                       int64_t first, int64_t count) {
  const Shape& shape = from.shape();
  const TensorView to = context.arena().tensor(DType::kBF16, shape);
  const Slots slots{from.data(),
                    scales.defined() ? scales.as<float>() : nullptr,
                    reinterpret_cast<__nv_bfloat16*>(to.data()),
                    first,
                    count,
                    shape[1],
                    static_cast<int>(shape[2])};
  const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(count * shape[2] / kPack, kThreads)),
                    static_cast<unsigned>(shape[0]));
  const cudaStream_t stream = cuda::stream_of(context);
  switch (from.dtype()) {
    case DType::kF32: expand_kernel<float><<<blocks, kThreads, 0, stream>>>(slots); break;
    case DType::kF16: expand_kernel<__half><<<blocks, kThreads, 0, stream>>>(slots); break;
    default: expand_kernel<signed char><<<blocks, kThreads, 0, stream>>>(slots); break;
  }
  cuda::check_launch("softmax_attention: widening keys and values");
  return to;
}

}  // namespace

SoftmaxAttentionArgs with_bf16_keys(Context& context, const SoftmaxAttentionArgs& args) {
  SoftmaxAttentionArgs out = args;
  if (args.keys.defined()) {
    const int64_t end = args.first_position + args.q.shape()[0];
    const int64_t seen =
        args.window_size > 0 ? std::max<int64_t>(0, args.first_position - args.window_size + 1) : 0;
    // Tiles begin before what is seen; a weight of 0 needs a number beside it.
    const int64_t begin = seen / kWarpgroupTileKeys * kWarpgroupTileKeys;
    out.keys = expand(context, args.keys, args.key_scales, begin, end - begin);
    out.values = expand(context, args.values, args.value_scales, begin, end - begin);
  }
  if (args.sink_keys.defined()) {
    const int64_t sinks = args.sink_keys.shape()[1];
    out.sink_keys = expand(context, args.sink_keys, args.sink_key_scales, 0, sinks);
    out.sink_values = expand(context, args.sink_values, args.sink_value_scales, 0, sinks);
  }
  out.key_scales = {};
  out.value_scales = {};
  out.sink_key_scales = {};
  out.sink_value_scales = {};
  return out;
}

}  // namespace spb::ops
