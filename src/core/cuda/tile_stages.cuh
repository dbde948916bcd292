// Kernels whose warpgroups take turns with a ring of tiles in shared memory: which stage comes
// next, and how their sums become rows again.
#pragma once

#include <cstdint>

#include "core/cuda/reduce.cuh"

namespace spb::cuda {

// Which of kStages stages comes next, and how often all have been used before.
template <int kStages>
struct Turn {
  int stage = 0;
  int round = 0;

  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    ++round;
  }
};

// In the layout of sums (core/cuda/mma.cuh) a lane holds two outputs of each group of eight: a
// word. Its words of four groups become the eight outputs of one of them, that whose number is the
// lane's among its four (`pair`), so that a lane writes 16 bytes at once.
__device__ inline void gather_outputs(uint32_t (&words)[4], int pair) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool high = (pair & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t got = __shfl_xor_sync(kFullWarp, high ? words[i] : words[i | bit], bit);
      (high ? words[i] : words[i | bit]) = got;
    }
  }
}

}  // namespace spb::cuda
