#include "core/arena.h"

#include <algorithm>

#include "core/error.h"

namespace spb {
namespace {
constexpr int64_t kChunkBytes = int64_t{4} << 20;
constexpr int64_t kMaxBytes = int64_t{1} << 62;  // leaves room for rounding and adding up

int64_t round_up(int64_t bytes) {
  return (bytes + static_cast<int64_t>(Buffer::kAlignment) - 1) /
         static_cast<int64_t>(Buffer::kAlignment) * static_cast<int64_t>(Buffer::kAlignment);
}

Buffer new_chunk(int64_t bytes, const Device& device) {
  try {
    return Buffer(bytes, device);
  } catch (const Error& error) {
    if (!device.is_cuda() || error.kind() != ErrorKind::kSystem) throw;
    throw Error(error.kind(), fmt::format("{}; as scratch memory, of which fewer tokens in a step "
                                          "need less (--chunk)",
                                          error.what()));
  }
}
}  // namespace

std::byte* Arena::allocate_bytes(int64_t bytes) {
  check(bytes >= 0 && bytes <= kMaxBytes, "arena: bytes: expected 0 to {}, got {}", kMaxBytes,
        bytes);
  const int64_t rounded = std::max<int64_t>(round_up(bytes), Buffer::kAlignment);
  while (chunk_ < chunks_.size() && used_ + rounded > chunks_[chunk_].bytes()) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    chunks_.push_back(new_chunk(std::max(rounded, kChunkBytes), device_));
    used_ = 0;
  }
  std::byte* memory = chunks_[chunk_].data() + used_;
  used_ += rounded;
  return memory;
}

TensorView Arena::tensor(DType dtype, const Shape& shape) {
  return {allocate_bytes(tensor_bytes(dtype, shape)), dtype, shape};
}

int64_t Arena::reserved_bytes() const {
  int64_t total = 0;
  for (const Buffer& chunk : chunks_) total += chunk.bytes();
  return total;
}

}  // namespace spb
