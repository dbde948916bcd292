// Weights as CUDA kernels read them.
//
// Floats are rows of [columns]. Blocks of 32 are split into planes, so that every access is
// aligned: first the codes of all rows, then a (d, m) pair of f16 for each block (q8_0, q4_0: m is
// unused and absent). A q4 code byte j of a block holds elements j and j + 16, as in files.
#pragma once

#include "core/cuda/block_rows.cuh"

namespace spb::ops {

inline constexpr int kBlock = 32;

// One matrix on the device.
struct Planes {
  const std::byte* codes;  // floats, or codes
  const __half* scales;    // of blocks; pairs for q4_1
  int64_t rows;
  int64_t columns;
};

__host__ __device__ inline int64_t code_bytes_per_row(DType dtype, int64_t columns) {
  if (dtype == DType::kF32) return columns * 4;
  if (dtype == DType::kF16 || dtype == DType::kBF16) return columns * 2;
  return dtype == DType::kQ8_0 ? columns : columns / 2;
}
inline int scales_per_block(DType dtype) {
  if (is_float(dtype)) return 0;
  return dtype == DType::kQ4_1 ? 2 : 1;
}

// Eight elements in a row, the unit in which threads work; `unit` counts them from the row's start.
template <DType kDtype>
__device__ inline void read_unit(const Planes& w, int64_t row, int64_t unit, float (&out)[8]) {
  if constexpr (kDtype == DType::kF32) {
    const auto* from = reinterpret_cast<const float4*>(w.codes) + (row * w.columns + unit * 8) / 4;
    const float4 a = from[0];
    const float4 b = from[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else if constexpr (kDtype == DType::kBF16 || kDtype == DType::kF16) {
    const uint4 words =
        *(reinterpret_cast<const uint4*>(w.codes) + (row * w.columns + unit * 8) / 8);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kDtype == DType::kBF16) {
        out[2 * i] = __uint_as_float(pairs[i] << 16);
        out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
      } else {
        const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
        out[2 * i] = two.x, out[2 * i + 1] = two.y;
      }
    }
  } else {
    constexpr bool kWithMin = kDtype == DType::kQ4_1;
    const int64_t block = row * (w.columns / kBlock) + unit / 4;
    const float d = __half2float(w.scales[block * (kWithMin ? 2 : 1)]);
    const float m = kWithMin ? __half2float(w.scales[block * 2 + 1]) : 0.0f;
    if constexpr (kDtype == DType::kQ8_0) {
      const int2 words = *(reinterpret_cast<const int2*>(w.codes) + block * 4 + unit % 4);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int word = i < 4 ? words.x : words.y;
        out[i] = d * static_cast<float>(static_cast<signed char>(word >> (8 * (i % 4))));
      }
    } else {
      // Units 0 and 1 are the low nibbles of the block's 16 bytes, 2 and 3 the high ones.
      const int part = static_cast<int>(unit % 4);
      const uint2 words = *(reinterpret_cast<const uint2*>(w.codes) + block * 2 + part % 2);
      const int shift = part < 2 ? 0 : 4;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = i < 4 ? words.x : words.y;
        const auto code = static_cast<int>(word >> (8 * (i % 4) + shift) & 15u);
        out[i] = kWithMin ? d * static_cast<float>(code) + m : d * static_cast<float>(code - 8);
      }
    }
  }
}

}  // namespace spb::ops
