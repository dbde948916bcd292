// What launchers of kernels share: the stream, the check after a launch, limits of shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/context.h"
#include "core/cuda/runtime.h"

namespace spb::cuda {

inline cudaStream_t stream_of(Context& context) {
  return static_cast<cudaStream_t>(context.stream().handle());
}

// After a launch: what was wrong with its configuration. Errors inside the kernel show up at the
// next synchronization.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Lets `kernel` use `bytes` of dynamic shared memory, beyond the 48 KiB of every device.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "reserving shared memory");
}

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Reads and writes of activations, which are f32 or bf16; arithmetic is in f32.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace spb::cuda
