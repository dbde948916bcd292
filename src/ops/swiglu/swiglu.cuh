// The formula of swiglu.h on a CUDA device, for all kernels that apply it: the same bits in each.
#pragma once

#include "core/cuda/fast_math.cuh"
#include "core/cuda/launch.cuh"

namespace spb::ops {

// x / (1 + exp(-x)); large negative x gives 0, -infinity included. Results that are rounded to bf16
// need no more than the fast functions, and take no branch.
template <typename T>
__device__ float activate(float x) {
  if constexpr (sizeof(T) == 2) {
    constexpr float kLog2E = 1.44269504f;
    constexpr float kSmallest = -80.0f;  // results of what is smaller are less than 2e-33 in size
    const float y = x * cuda::fast_reciprocal(1.0f + cuda::fast_exp2(x * -kLog2E));
    return x < kSmallest ? 0.0f : y;
  } else {
    return x == -INFINITY ? 0.0f : x / (1.0f + expf(-x));
  }
}

template <typename T>
__device__ T gated(T gate, T up) {
  return cuda::from_float<T>(activate<T>(cuda::to_float(gate)) * cuda::to_float(up));
}

}  // namespace spb::ops
