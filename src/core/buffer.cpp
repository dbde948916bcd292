#include "core/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/cuda/cuda.h"
#include "core/error.h"

namespace spb {
namespace {

// From this size on, memory comes as fresh zero pages that are backed only when touched, and may
// be backed by huge pages.
constexpr int64_t kMapThreshold = int64_t{1} << 21;

std::byte* map_pages(int64_t bytes) {
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw_system_error(fmt::format("allocating {} bytes", bytes));
#ifdef MADV_HUGEPAGE
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(memory);
}

std::byte* allocate(int64_t bytes, const Device& device) {
  check(bytes >= 0, "buffer: bytes: expected >= 0, got {}", bytes);
  if (device.is_cuda()) return cuda::allocate(device.index, bytes);
  if (bytes == 0) return nullptr;
  if (bytes >= kMapThreshold) return map_pages(bytes);
  const size_t rounded = (static_cast<size_t>(bytes) + Buffer::kAlignment - 1) /
                         Buffer::kAlignment * Buffer::kAlignment;
  void* memory = std::aligned_alloc(Buffer::kAlignment, rounded);
  if (memory == nullptr) throw_system_error(fmt::format("allocating {} bytes", bytes));
  std::memset(memory, 0, rounded);
  return static_cast<std::byte*>(memory);
}

void release(std::byte* data, int64_t bytes, const Device& device) {
  if (device.is_cuda()) {
    cuda::release(device.index, data);
  } else if (bytes >= kMapThreshold) {
    munmap(data, static_cast<size_t>(bytes));
  } else {
    std::free(data);
  }
}

}  // namespace

Buffer::Buffer(int64_t bytes, const Device& device)
    : data_(allocate(bytes, device)), bytes_(bytes), device_(device) {}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Buffer::~Buffer() { release(data_, bytes_, device_); }

Buffer Buffer::clone() const {
  Buffer copy(bytes_, device_);
  if (bytes_ == 0) return copy;
  if (device_.is_cuda()) {
    cuda::copy_on_device(device_.index, copy.data_, data_, bytes_);
  } else {
    std::memcpy(copy.data_, data_, static_cast<size_t>(bytes_));
  }
  return copy;
}

int64_t tensor_bytes(DType dtype, const Shape& shape) {
  int64_t bytes = 0;
  check(!__builtin_mul_overflow(row_bytes(dtype, shape.last()), shape.rows(), &bytes),
        "tensor: {} of shape {} does not fit in 63 bits", name(dtype), shape);
  return bytes;
}

Tensor::Tensor(DType dtype, const Shape& shape, const Device& device)
    : buffer_(tensor_bytes(dtype, shape), device), view_(buffer_.data(), dtype, shape) {}

}  // namespace spb
