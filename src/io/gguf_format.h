// Numbers of the GGUF format that its reader and its writer share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace spb::io {

inline constexpr uint32_t kGgufMagic = 0x46554747;  // "GGUF"
inline constexpr uint32_t kGgufVersion = 3;
inline constexpr int64_t kGgufDefaultAlignment = 32;
inline constexpr int64_t kGgufMinAlignment = 8;
inline constexpr int64_t kGgufMaxAlignment = int64_t{1} << 20;

// Far above any real model, low enough that a hostile file cannot exhaust memory.
inline constexpr uint64_t kGgufMaxKeys = 1u << 16;
inline constexpr uint64_t kGgufMaxTensors = 1u << 20;
inline constexpr uint64_t kGgufMaxNameBytes = 65535;
inline constexpr uint64_t kGgufMaxMetadataBytes = uint64_t{1} << 30;  // in memory, once parsed

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
inline constexpr uint32_t kNumGgufTypes = 13;

std::string_view name(GgufType type);

// Tensor types, numbered as in the file. `ggml_type_name` also knows types we do not read.
std::optional<DType> dtype_of_ggml_type(uint32_t type);
uint32_t ggml_type_of(DType dtype);
std::string ggml_type_name(uint32_t type);

inline bool is_gguf_alignment(int64_t alignment) {
  return alignment >= kGgufMinAlignment && alignment <= kGgufMaxAlignment &&
         (alignment & (alignment - 1)) == 0;
}

// Smallest multiple of `alignment` (a power of two) that is not below `offset`.
inline uint64_t align_up(uint64_t offset, int64_t alignment) {
  const auto mask = static_cast<uint64_t>(alignment) - 1;
  return (offset + mask) & ~mask;
}

}  // namespace spb::io
