// Buffer: owned, 64-byte aligned memory of a device. Moves, never copies silently.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"
#include "core/tensor_view.h"

namespace spb {

class Buffer {
 public:
  static constexpr size_t kAlignment = 64;  // a cache line, and the widest vector load

  Buffer() = default;
  // Zeroed memory; on the CPU large buffers are mapped lazily, so untouched pages cost nothing.
  // Throws a kSystem error that says how much was asked for.
  explicit Buffer(int64_t bytes, const Device& device = {});
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  const Device& device() const { return device_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

  Buffer clone() const;  // an explicit copy, on the same device

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
};

// Bytes of a contiguous tensor; usage error if they do not fit in 63 bits.
int64_t tensor_bytes(DType dtype, const Shape& shape);

// A Buffer with a dtype and a shape.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, const Shape& shape, const Device& device = {});

  bool defined() const { return view_.defined(); }
  TensorView view() { return view_; }
  ConstTensorView view() const { return view_; }
  operator TensorView() { return view_; }
  operator ConstTensorView() const { return view_; }
  const Shape& shape() const { return view_.shape(); }
  DType dtype() const { return view_.dtype(); }
  int64_t bytes() const { return buffer_.bytes(); }
  const Device& device() const { return buffer_.device(); }
  template <typename T>
  T* as() {
    return view_.as<T>();
  }
  template <typename T>
  const T* as() const {
    return ConstTensorView(view_).as<T>();
  }

 private:
  Buffer buffer_;
  TensorView view_;
};

}  // namespace spb
