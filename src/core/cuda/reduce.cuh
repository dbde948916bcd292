// Sums over the threads of a warp or a block, in a fixed order: the same bits on every run.
#pragma once

namespace spb::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

// Every thread gets the result of all. kThreads is a multiple of 32; all threads of the block take
// part.
template <int kThreads, typename WarpReduce, typename Combine>
__device__ float block_reduce(float value, WarpReduce warp_reduce, Combine combine) {
  __shared__ float parts[kThreads / kWarpSize];
  value = warp_reduce(value);
  __syncthreads();  // parts may still be read by the call before
  if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float result = parts[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarpSize; ++i) result = combine(result, parts[i]);
  return result;
}

template <int kThreads>
__device__ float block_sum(float value) {
  return block_reduce<kThreads>(value, warp_sum, [](float a, float b) { return a + b; });
}

template <int kThreads>
__device__ float block_max(float value) {
  return block_reduce<kThreads>(value, warp_max, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace spb::cuda
