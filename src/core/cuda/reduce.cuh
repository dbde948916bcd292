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

// Every thread gets the sum. kThreads is a multiple of 32; all threads of the block take part.
template <int kThreads>
__device__ float block_sum(float value) {
  __shared__ float parts[kThreads / kWarpSize];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  value = warp_sum(value);
  __syncthreads();  // parts may still be read by the call before
  if (threadIdx.x % kWarpSize == 0) parts[warp] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarpSize; ++i) sum += parts[i];
  return sum;
}

}  // namespace spb::cuda
