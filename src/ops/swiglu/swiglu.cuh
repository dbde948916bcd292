// The formula of swiglu.h on a CUDA device, for all kernels that apply it: the same bits in each.
#pragma once

#include "core/cuda/launch.cuh"

namespace spb::ops {

// x / (1 + exp(-x)); large negative x gives 0, -infinity included. Results that are rounded to bf16
// need no more than the fast functions.
template <typename T>
__device__ float activate(float x) {
  if (x == -INFINITY) return 0.0f;
  if constexpr (sizeof(T) == 2) return __fdividef(x, 1.0f + __expf(-fmaxf(x, -80.0f)));
  return x / (1.0f + expf(-x));
}

template <typename T>
__device__ T gated(T gate, T up) {
  return cuda::from_float<T>(activate<T>(cuda::to_float(gate)) * cuda::to_float(up));
}

}  // namespace spb::ops
