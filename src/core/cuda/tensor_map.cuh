// Tiles of matrices that Hopper's copy engine brings to shared memory: one thread asks for them, a
// barrier tells when they have come. They are laid out as core/cuda/wgmma.cuh says.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/runtime.h"

namespace spb::cuda {

// A matrix as the copy engine sees it. Rows are `stride` bytes apart; data and stride are multiples
// of 16 bytes.
struct TileSource {
  const void* data;
  int64_t rows;
  int64_t columns;  // elements
  int64_t stride;
  CUtensorMapDataType type;
  CUtensorMapSwizzle swizzle;
};

// Describes it for tiles of `tile_columns`, 128 bytes, by `tile_rows` (up to 256). What a tile has
// beyond the matrix is zeros.
inline CUtensorMap describe_tiles(const TileSource& from, int tile_columns, int tile_rows) {
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
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(from.columns),
                              static_cast<cuuint64_t>(from.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(from.stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(tile_columns),
                            static_cast<cuuint32_t>(tile_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      kEncode(&map, from.type, 2, const_cast<void*>(from.data), sizes, strides, box, steps,
              CU_TENSOR_MAP_INTERLEAVE_NONE, from.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS,
        "cuda: tiles of a matrix [{}, {}], stride {} bytes: refused with code {}", from.rows,
        from.columns, from.stride, static_cast<int>(result));
  return map;
}

// A bf16 matrix in tiles of 64 columns; its stride in elements.
inline CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                              int tile_rows) {
  return describe_tiles({data, rows, columns, stride * static_cast<int64_t>(sizeof(uint16_t)),
                         CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_SWIZZLE_128B},
                        64, tile_rows);
}

// A matrix of bytes in tiles of 128 columns.
inline CUtensorMap byte_tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                                   int tile_rows) {
  return describe_tiles(
      {data, rows, columns, stride, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B}, 128,
      tile_rows);
}

// Rows of 128 bytes whose pieces lie in memory as core/cuda/wgmma.cuh wants them.
inline CUtensorMap stored_tiles_map(const void* tiles, int64_t rows, int tile_rows) {
  return describe_tiles(
      {tiles, rows, 128, 128, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_NONE}, 128,
      tile_rows);
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

// The other way: what lies beyond the matrix is left out. Threads that wrote the tile have called
// publish_writes(), and this one has met them since.
__device__ inline void store_tile(const CUtensorMap* map, int row, int column, const void* from) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(column), "r"(row), "r"(shared_address(from))
      : "memory");
#else
  __trap();
#endif
}

// The same, added to what is there: every sum is rounded once to the type of the matrix.
__device__ inline void add_tile(const CUtensorMap* map, int row, int column, const void* from) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], "
      "[%3];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(column), "r"(row), "r"(shared_address(from))
      : "memory");
#else
  __trap();
#endif
}

// Until the tiles that this thread stores or adds have been read, and may be written again.
__device__ inline void wait_for_stores() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#else
  __trap();
#endif
}

}  // namespace spb::cuda
