#include "io/mapped_tensors.h"

#include <cstring>

namespace spb::io {

const std::byte* MappedTensors::aligned(std::span<const std::byte> data, DType dtype) {
  // Element size is a power of two and at most what a plain dtype needs for its alignment.
  const auto alignment = static_cast<uintptr_t>(block_bytes(dtype));
  if (reinterpret_cast<uintptr_t>(data.data()) % alignment == 0) return data.data();
  Buffer copy(static_cast<int64_t>(data.size()));
  std::memcpy(copy.data(), data.data(), data.size());
  copies_.push_back(std::move(copy));
  return copies_.back().data();
}

}  // namespace spb::io
