// Tiles of matrices that Hopper's copy engine brings to shared memory: one thread asks for them, a
// barrier tells when they have come. They are laid out as core/cuda/wgmma.cuh says.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/runtime.h"

namespace spb::cuda {

// Describes a bf16 matrix to the copy engine, for tiles of 64 columns by `tile_rows` (up to 256).
// Rows are `stride` elements apart; data and stride are multiples of 16 bytes. What a tile has
// beyond the matrix is zeros.
inline CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                              int tile_rows) {
  static const auto kEncode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found),
               "looking for cuTensorMapEncodeTiled");
    check(function != nullptr && found == cudaDriverEntryPointSuccess,
          "cuda: driver: expected one with cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * sizeof(uint16_t)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(tile_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      kEncode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides,
              box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "cuda: tiles of a matrix [{}, {}], stride {}: refused with code {}",
        rows, columns, stride, static_cast<int>(result));
  return map;
}

// The tile whose first element is (row, column) of the matrix.
__device__ inline void copy_tile(void* to, const CUtensorMap* map, int row, int column,
                                 Barrier* barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#else
  __trap();
#endif
}

// The same to the same place of every block of the cluster in `blocks` (a bit each), each with its
// own barrier.
__device__ inline void copy_tile_to(uint16_t blocks, void* to, const CUtensorMap* map, int row,
                                    int column, Barrier* barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
#else
  __trap();
#endif
}

}  // namespace spb::cuda
