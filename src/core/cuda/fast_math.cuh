// Functions of the units for special functions: one instruction each, results below the smallest
// normal number are 0, NaN stays NaN.
#pragma once

namespace spb::cuda {

// 2^x to 2 ulp.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to 1 ulp.
__device__ inline float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace spb::cuda
