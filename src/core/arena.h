// Arena: scratch memory handed out by bumping a pointer, given back all at once.
//
// A caller marks the arena with a Scope; what is allocated inside is gone when the Scope ends.
// The arena grows in chunks that are kept, so a steady workload allocates nothing.
// Memory of one device; on a CUDA device what was given back may still be read by kernels in
// flight, which is sound as long as all users share one stream. Not thread-safe: one arena per
// Context.
#pragma once

#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"

namespace spb {

class Arena {
 public:
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), chunk_(arena.chunk_), used_(arena.used_) {}
    ~Scope() {
      arena_.chunk_ = chunk_;
      arena_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t chunk_;
    int64_t used_;
  };

  explicit Arena(const Device& device = {}) : device_(device) {}

  // 64-byte aligned memory with unspecified content.
  std::byte* allocate_bytes(int64_t bytes);

  template <typename T>
  T* allocate(int64_t count) {
    int64_t bytes = 0;
    check(!__builtin_mul_overflow(count, static_cast<int64_t>(sizeof(T)), &bytes),
          "arena: expected a count whose bytes fit in 63 bits, got {}", count);
    return reinterpret_cast<T*>(allocate_bytes(bytes));
  }

  // A contiguous tensor with unspecified content.
  TensorView tensor(DType dtype, const Shape& shape);
  TensorView tensor(const Shape& shape) { return tensor(DType::kF32, shape); }

  int64_t reserved_bytes() const;  // held from the system, in use or not

 private:
  Device device_;
  std::vector<Buffer> chunks_;
  size_t chunk_ = 0;  // the chunk being filled
  int64_t used_ = 0;  // bytes of it handed out
};

}  // namespace spb
