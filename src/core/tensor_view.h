// TensorView: typed, shaped access to memory that somebody else owns.
//
// Rows (the last dimension) are contiguous. `row_stride_bytes` is the distance between consecutive
// rows when the leading dimensions are flattened; it allows a view of some columns of a wider
// matrix. All operators take views; none of them allocates what it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/error.h"
#include "core/half.h"
#include "core/shape.h"

namespace spb {

template <typename T>
inline constexpr DType kDTypeOf = kDTypeOf<std::remove_const_t<T>>;
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<f16> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<bf16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::kI8;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;

// Byte is std::byte (writable) or const std::byte (read-only).
template <typename Byte>
class BasicTensorView {
 public:
  BasicTensorView() = default;  // absent: defined() is false

  BasicTensorView(Byte* data, DType dtype, const Shape& shape)
      : BasicTensorView(data, dtype, shape, row_bytes(dtype, shape.last())) {}
  BasicTensorView(Byte* data, DType dtype, const Shape& shape, int64_t row_stride_bytes)
      : data_(data), dtype_(dtype), shape_(shape), row_stride_bytes_(row_stride_bytes) {}

  // A view over an array of T, contiguous.
  template <typename T>
  requires(!std::is_same_v<std::remove_const_t<T>, std::byte>)
      BasicTensorView(T* data, const Shape& shape)
      : BasicTensorView(reinterpret_cast<Byte*>(data), kDTypeOf<T>, shape) {}

  // Writable views convert to read-only ones.
  operator BasicTensorView<const std::byte>() const requires(!std::is_const_v<Byte>) {
    return {data_, dtype_, shape_, row_stride_bytes_};
  }

  bool defined() const { return data_ != nullptr; }
  Byte* data() const { return data_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t row_stride_bytes() const { return row_stride_bytes_; }
  int64_t row_bytes_used() const { return row_bytes(dtype_, shape_.last()); }
  bool contiguous() const { return row_stride_bytes_ == row_bytes_used() || shape_.rows() <= 1; }
  int64_t bytes() const { return row_bytes_used() * shape_.rows(); }  // without gaps

  Byte* row(int64_t index) const { return data_ + index * row_stride_bytes_; }

  // Typed pointer to row `index`. The dtype must match: a cheap check, made once per row.
  template <typename T>
  auto* row_as(int64_t index) const {
    using Pointer = std::conditional_t<std::is_const_v<Byte>, const T*, T*>;
    check(dtype_ == kDTypeOf<T>, "tensor view: dtype: expected {}, got {}", name(kDTypeOf<T>),
          name(dtype_));
    return reinterpret_cast<Pointer>(row(index));
  }
  template <typename T>
  auto* as() const {
    return row_as<T>(0);
  }

  // Rows [first, first + count) as a matrix [count, last].
  BasicTensorView rows(int64_t first, int64_t count) const {
    check(first >= 0 && count >= 0 && first <= shape_.rows() - count,
          "tensor view: rows: expected a range inside {} rows, got {} + {}", shape_.rows(), first,
          count);
    return {row(first), dtype_, Shape{count, shape_.last()}, row_stride_bytes_};
  }

  // The same contiguous elements under another shape.
  BasicTensorView reshaped(const Shape& shape) const {
    check(contiguous() && shape.elements() == shape_.elements(),
          "tensor view: reshape: expected {} contiguous elements, got shape {}", shape_.elements(),
          shape);
    return {data_, dtype_, shape};
  }

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  int64_t row_stride_bytes_ = 0;
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

}  // namespace spb
