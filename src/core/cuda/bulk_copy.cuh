// Copies of whole tiles by the copy engine of Hopper, and the clusters of blocks that share them.
//
// One thread starts a copy; the barrier's phase ends when the bytes it was told to expect have
// arrived beside its other arrivals. Blocks of a cluster lie on neighbouring multiprocessors and
// reach each other's shared memory. On other architectures than sm_90a everything here traps.
#pragma once

#include "core/cuda/wgmma.cuh"

namespace spb::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// True in one thread of a whole warp, the same every time. The compiler then knows that one thread
// starts the copies; otherwise it loops over all that may, for a hundred cycles each.
__device__ inline bool is_elected() {
  uint32_t elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.b32 %0, 1, 0, p; }"
               : "=r"(elected));
  return elected != 0;
}
// Arrives, and adds bytes to what the phase waits for.
__device__ inline void expect_bytes(Barrier* barrier, int bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(
          shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// `bytes` is a multiple of 16, both ends are aligned to 16 bytes.
__device__ inline void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// At the barrier of another block of the cluster. Orders no writes: for barriers that say that
// something was read.
__device__ inline void arrive_at(Barrier* barrier, int block) {
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; "
      "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}
// After barriers were started, before other blocks or the copy engine use them.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// All threads of all blocks of the cluster.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and
// holds elements as mma.cuh says of C.
__device__ inline void store_matrices(void* row, const uint32_t (&from)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
}
// The same, transposed.
__device__ inline void store_matrices_transposed(void* row, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}
#else
__device__ inline bool is_elected() { __trap(); }
__device__ inline void expect_bytes(Barrier*, int) { __trap(); }
__device__ inline void copy_bulk(void*, const void*, int, Barrier*) { __trap(); }
__device__ inline void arrive_at(Barrier*, int) { __trap(); }
__device__ inline void publish_barriers() { __trap(); }
__device__ inline void meet_cluster() { __trap(); }
__device__ inline void store_matrices(void*, const uint32_t (&)[4]) { __trap(); }
__device__ inline void store_matrices_transposed(void*, const uint32_t (&)[4]) { __trap(); }
#endif

}  // namespace spb::cuda
