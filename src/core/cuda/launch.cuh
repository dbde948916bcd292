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

// Launches a kernel that the device may begin before the kernels queued earlier have ended (from
// Hopper on): it must call wait_for_earlier() before it touches what they write or read.
template <typename... Parameters, typename... Arguments>
void launch_early(Context& context, const char* name, dim3 blocks, int threads, size_t shared,
                  void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  // One split of the memory on chip for all of them: changing it would empty the multiprocessor.
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream_of(context);
  config.attrs = attributes;
  config.numAttrs = context.stream().is_hopper() ? 2 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

// Launches a kernel in clusters of `cluster` blocks (Hopper).
template <typename... Parameters, typename... Arguments>
void launch_clusters(Context& context, const char* name, int64_t blocks, unsigned cluster,
                     int threads, size_t shared, void (*kernel)(Parameters...),
                     Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream_of(context);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

// How many clusters of `cluster` blocks the device holds at once.
template <typename... Parameters>
int64_t resident_clusters(Context& context, unsigned cluster, int threads, size_t shared,
                          void (*kernel)(Parameters...)) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(context.stream().multiprocessors()));
  config.gridDim.x -= config.gridDim.x % cluster;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "counting clusters");
  return clusters;
}

// Waits until the kernels queued earlier have ended and all they wrote can be read.
__device__ inline void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin once every block has called this or ended.
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for a line of memory to be brought near.
__device__ inline void prefetch(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// Lets `kernel` use `bytes` of dynamic shared memory, beyond the 48 KiB of every device, on the one
// that is current.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "reserving shared memory");
}
// The same on the context's.
template <typename Kernel>
void allow_shared_memory(Context& context, Kernel kernel, int bytes) {
  context.stream().make_current();
  allow_shared_memory(kernel, bytes);
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
