// Elements of rows of weights in any format that the device keeps as files have it.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/cuda/row_formats.h"

namespace spb::cuda {

__device__ inline float half_at(const std::byte* bytes) {
  return __half2float(__ushort_as_half(*reinterpret_cast<const unsigned short*>(bytes)));
}

// Nibble i of the 16 bytes of a block of 32: low nibbles hold the first half.
__device__ inline int nibble(const std::byte* codes, int i) {
  const auto byte = static_cast<int>(codes[i % 16]);
  return i < 16 ? byte & 15 : byte >> 4;
}

template <DType kDtype>
__device__ float row_element(const std::byte* row, int64_t column) {
  const auto in_block = static_cast<int>(column % 32);
  if constexpr (kDtype == DType::kF32) {
    return reinterpret_cast<const float*>(row)[column];
  } else if constexpr (kDtype == DType::kF16) {
    return half_at(row + 2 * column);
  } else if constexpr (kDtype == DType::kBF16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[column]);
  } else if constexpr (kDtype == DType::kQ8_0) {
    const std::byte* block = row + column / 32 * 34;
    return half_at(block) * static_cast<float>(static_cast<signed char>(block[2 + in_block]));
  } else if constexpr (kDtype == DType::kQ4_0) {
    const std::byte* block = row + column / 32 * 18;
    return half_at(block) * static_cast<float>(nibble(block + 2, in_block) - 8);
  } else {
    static_assert(kDtype == DType::kQ4_1);
    const std::byte* block = row + column / 32 * 20;
    return half_at(block) * static_cast<float>(nibble(block + 4, in_block)) + half_at(block + 2);
  }
}

// Calls function.template operator()<dtype>().
template <typename Function>
void with_row_format(DType dtype, Function function) {
  switch (dtype) {
    case DType::kF32: return function.template operator()<DType::kF32>();
    case DType::kF16: return function.template operator()<DType::kF16>();
    case DType::kBF16: return function.template operator()<DType::kBF16>();
    case DType::kQ8_0: return function.template operator()<DType::kQ8_0>();
    case DType::kQ4_0: return function.template operator()<DType::kQ4_0>();
    case DType::kQ4_1: return function.template operator()<DType::kQ4_1>();
    default:
      fail(ErrorKind::kUsage, "cuda: weights: expected a float type, q8_0, q4_0 or q4_1, got {}",
           name(dtype));
  }
}

}  // namespace spb::cuda
