#include "core/tensor_check.h"

#include <cstdint>

namespace spb {
namespace {

bool same_memory(const ConstTensorView& a, const ConstTensorView& b) {
  return a.data() == b.data() && a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.row_stride_bytes() == b.row_stride_bytes() || a.shape().rows() <= 1);
}

bool overlap(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.bytes() == 0 || b.bytes() == 0) return false;
  const auto begin = [](const ConstTensorView& t) { return reinterpret_cast<intptr_t>(t.data()); };
  const auto end = [&](const ConstTensorView& t) {
    return begin(t) + (t.shape().rows() - 1) * t.row_stride_bytes() + t.row_bytes_used();
  };
  if (end(a) <= begin(b) || end(b) <= begin(a)) return false;
  const int64_t stride = a.row_stride_bytes();
  if (stride != b.row_stride_bytes() || stride <= 0) return true;
  // Rows of one matrix: they are disjoint when the columns of b fit into the gap behind those of a.
  const int64_t offset = ((begin(b) - begin(a)) % stride + stride) % stride;
  return offset < a.row_bytes_used() || offset + b.row_bytes_used() > stride;
}

}  // namespace

void check_tensor(std::string_view operation, std::string_view argument,
                  const ConstTensorView& tensor, DType dtype, const Shape& shape) {
  check(tensor.dtype() == dtype && tensor.shape() == shape, "{}: {}: expected {} {}, got {} {}",
        operation, argument, name(dtype), shape, name(tensor.dtype()), tensor.shape());
  check(tensor.defined() || shape.elements() == 0, "{}: {}: expected {} {}, got no memory",
        operation, argument, name(dtype), shape);
  check(tensor.row_stride_bytes() % block_bytes(dtype) == 0 &&
            (tensor.row_stride_bytes() >= tensor.row_bytes_used() || shape.rows() <= 1),
        "{}: {}: row stride: expected a multiple of {} bytes and at least {}, got {}", operation,
        argument, block_bytes(dtype), tensor.row_bytes_used(), tensor.row_stride_bytes());
}

void check_activation(std::string_view operation, std::string_view argument,
                      const ConstTensorView& tensor, const Device& device, const Shape& shape) {
  const bool bf16 = device.is_cuda() && tensor.dtype() == DType::kBF16;
  check_tensor(operation, argument, tensor, bf16 ? DType::kBF16 : DType::kF32, shape);
}

void check_no_overlap(std::string_view operation, std::string_view first_name,
                      const ConstTensorView& first, std::string_view second_name,
                      const ConstTensorView& second) {
  check(!overlap(first, second), "{}: {} and {}: expected separate memory, got overlapping",
        operation, first_name, second_name);
}

void check_same_or_no_overlap(std::string_view operation, std::string_view first_name,
                              const ConstTensorView& first, std::string_view second_name,
                              const ConstTensorView& second) {
  if (same_memory(first, second)) return;
  check(!overlap(first, second),
        "{}: {} and {}: expected the same or separate memory, got overlapping in part", operation,
        first_name, second_name);
}

}  // namespace spb
