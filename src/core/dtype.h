// Element types of tensors: plain numbers and the block formats of GGUF files.
//
// A block format stores `block_elements` consecutive elements of a row in `block_bytes` bytes.
// Plain types are blocks of one element. The layout of each block is in block_formats.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace spb {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI8,
  kI32,
  kI64,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};
inline constexpr int kNumDTypes = 14;

std::string_view name(DType dtype);  // lower case: "f32", "q4_0", "q6_k"
std::optional<DType> parse_dtype(std::string_view name);

int64_t block_elements(DType dtype);
int64_t block_bytes(DType dtype);

inline bool is_plain(DType dtype) { return dtype <= DType::kI64; }
constexpr bool is_float(DType dtype) { return dtype <= DType::kBF16; }

// Bytes of a row of `elements`; elements must be a multiple of block_elements (else a usage error).
int64_t row_bytes(DType dtype, int64_t elements);

}  // namespace spb
