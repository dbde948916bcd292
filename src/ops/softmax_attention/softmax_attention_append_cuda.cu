#include <cuda_fp16.h>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "core/int8_row.h"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;

// Where keys (0) and values (1) of a sequence go.
struct Cache {
  std::byte* rows[2];  // [heads, capacity, head_dim]
  float* scales[2];    // [heads, capacity] with i8
  int64_t first_position;
  int64_t capacity;
};

template <typename T>
struct Problem {
  Cache caches[kMaxBatchedSequences];
  bool batch;                   // a cache for each token; else all tokens are of the first one
  cuda::Rows<const T> from[2];  // [tokens, heads, head_dim] of keys and values
  const int64_t* advance;       // Context::advance()
  int64_t rows;                 // tokens x heads
  int heads;
  int head_dim;
};

template <typename Element>
__device__ Element rounded(float x) {
  return static_cast<Element>(x);
}

// A warp writes one row of one side.
template <typename T, typename Element>
__global__ void __launch_bounds__(kThreads) append_kernel(const __grid_constant__ Problem<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / cuda::kWarpSize;
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  if (row >= p.rows) return;
  const auto side = static_cast<int>(blockIdx.y);
  const int64_t token = row / p.heads;
  const Cache& cache = p.caches[p.batch ? token : 0];
  const int64_t position =
      cache.first_position + (p.batch ? 0 : token) + (p.advance == nullptr ? 0 : *p.advance);
  const int64_t slot = row % p.heads * cache.capacity + position % cache.capacity;
  const T* from = p.from[side].row(row);
  auto* to = reinterpret_cast<Element*>(cache.rows[side]) + slot * p.head_dim;
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
    if (lane == 0) cache.scales[side][slot] = scale;
  }
}

template <typename T, typename Element>
void launch(Context& context, const Problem<T>& p) {
  const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(p.rows, kWarps)), 2);
  cuda::launch_early(context, "append_to_cache", blocks, kThreads, 0, append_kernel<T, Element>, p);
}

Cache cache_of(TensorView keys, TensorView values, TensorView key_scales, TensorView value_scales,
               int64_t first_position) {
  const auto scales = [](TensorView tensor) {
    return tensor.defined() ? tensor.as<float>() : nullptr;
  };
  return {{keys.data(), values.data()},
          {scales(key_scales), scales(value_scales)},
          first_position,
          keys.shape()[1]};
}

template <typename T>
Problem<T> problem_of(Context& context, const AppendToCacheArgs& args) {
  const Shape& k = args.k.shape();
  Problem<T> p{};
  p.batch = !args.sequences.empty();
  if (!p.batch) {
    p.caches[0] =
        cache_of(args.keys, args.values, args.key_scales, args.value_scales, args.first_position);
  }
  for (size_t i = 0; i < args.sequences.size(); ++i) {
    const CachedSequence& one = args.sequences[i];
    p.caches[i] =
        cache_of(one.keys, one.values, one.key_scales, one.value_scales, one.first_position);
  }
  p.from[0] = cuda::rows_of<T>(args.k);
  p.from[1] = cuda::rows_of<T>(args.v);
  p.advance = context.advance();
  p.rows = k[0] * k[1];
  p.heads = static_cast<int>(k[1]);
  p.head_dim = static_cast<int>(k[2]);
  return p;
}

}  // namespace

void append_to_cache_cuda(Context& context, const AppendToCacheArgs& args) {
  if (args.k.shape()[0] == 0) return;
  const DType cache = args.sequences.empty() ? args.keys.dtype() : args.sequences[0].keys.dtype();
  cuda::with_activation(args.k.dtype(), [&](auto type) {
    using T = decltype(type);
    const Problem<T> p = problem_of<T>(context, args);
    switch (cache) {
      case DType::kF32: return launch<T, float>(context, p);
      case DType::kF16: return launch<T, __half>(context, p);
      case DType::kBF16: return launch<T, __nv_bfloat16>(context, p);
      default: return launch<T, signed char>(context, p);
    }
  });
}

}  // namespace spb::ops
