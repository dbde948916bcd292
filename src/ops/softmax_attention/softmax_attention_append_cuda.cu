#include <cuda_fp16.h>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "core/int8_row.h"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;

// One of keys and values: what comes in, and where it goes.
template <typename T>
struct Rows {
  const T* from;  // [tokens, heads, head_dim], rows `stride` elements apart
  int64_t stride;
  std::byte* cache;  // [heads, capacity, head_dim]
  float* scales;     // [heads, capacity] with i8
};

template <typename T>
struct Problem {
  Rows<T> sides[2];  // keys, values
  int64_t rows;      // tokens x heads
  int64_t first_position;
  int64_t capacity;
  int heads;
  int head_dim;
};

template <typename Element>
__device__ Element rounded(float x) {
  return static_cast<Element>(x);
}

// A warp writes one row of one side.
template <typename T, typename Element>
__global__ void __launch_bounds__(kThreads) append_kernel(const Problem<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / cuda::kWarpSize;
  if (row >= p.rows) return;
  const Rows<T>& side = p.sides[blockIdx.y];
  const int64_t position = p.first_position + row / p.heads;
  const int64_t slot = row % p.heads * p.capacity + position % p.capacity;
  const T* from = side.from + row * side.stride;
  auto* to = reinterpret_cast<Element*>(side.cache) + slot * p.head_dim;
  if constexpr (sizeof(Element) > 1) {
    for (int c = lane; c < p.head_dim; c += cuda::kWarpSize) {
      to[c] = rounded<Element>(cuda::to_float(from[c]));
    }
  } else {
    float largest = 0;
    for (int c = lane; c < p.head_dim; c += cuda::kWarpSize) {
      largest = fmaxf(largest, fabsf(cuda::to_float(from[c])));
    }
    const float scale =
        fminf(fmaxf(cuda::warp_max(largest) / 127.0f, kSmallestInt8Scale), kLargestInt8Scale);
    for (int c = lane; c < p.head_dim; c += cuda::kWarpSize) {
      const float code = rintf(cuda::to_float(from[c]) / scale);
      to[c] = static_cast<Element>(fminf(fmaxf(code, -128.0f), 127.0f));
    }
    if (lane == 0) side.scales[slot] = scale;
  }
}

template <typename T, typename Element>
void launch(Context& context, const Problem<T>& p) {
  const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(p.rows, kWarps)), 2);
  append_kernel<T, Element><<<blocks, kThreads, 0, cuda::stream_of(context)>>>(p);
  cuda::check_launch("append_to_cache");
}

template <typename T>
Rows<T> side(ConstTensorView from, TensorView cache, TensorView scales) {
  const auto rows = cuda::rows_of<T>(from);
  return {rows.data, rows.stride, cache.data(), scales.defined() ? scales.as<float>() : nullptr};
}

}  // namespace

void append_to_cache_cuda(Context& context, const AppendToCacheArgs& args) {
  const Shape& k = args.k.shape();
  if (k[0] == 0) return;
  cuda::with_activation(args.k.dtype(), [&](auto type) {
    using T = decltype(type);
    const Problem<T> p{{side<T>(args.k, args.keys, args.key_scales),
                        side<T>(args.v, args.values, args.value_scales)},
                       k[0] * k[1],
                       args.first_position,
                       args.keys.shape()[1],
                       static_cast<int>(k[1]),
                       static_cast<int>(k[2])};
    switch (args.keys.dtype()) {
      case DType::kF32: return launch<T, float>(context, p);
      case DType::kF16: return launch<T, __half>(context, p);
      case DType::kBF16: return launch<T, __nv_bfloat16>(context, p);
      default: return launch<T, signed char>(context, p);
    }
  });
}

}  // namespace spb::ops
