#include "core/transfer.h"

#include <cstring>

#include "core/error.h"

namespace spb {
namespace {

void check_pair(const char* operation, const ConstTensorView& from, const ConstTensorView& to) {
  check(from.dtype() == to.dtype() && from.bytes() == to.bytes() && from.contiguous() &&
            to.contiguous(),
        "{}: expected two contiguous tensors alike, got {} {} and {} {}", operation,
        name(from.dtype()), from.shape(), name(to.dtype()), to.shape());
}

}  // namespace

void copy_tensor(Context& context, ConstTensorView from, TensorView to) {
  check_pair("copy", from, to);
  if (context.device().is_cuda()) {
    context.stream().copy_on_device(to.data(), from.data(), from.bytes());
  } else if (from.bytes() > 0) {
    std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
  }
}

void fill_zero(Context& context, TensorView tensor) {
  check(tensor.contiguous(), "fill: expected a contiguous tensor, got a view of columns");
  if (context.device().is_cuda()) {
    context.stream().fill_zero(tensor.data(), tensor.bytes());
  } else if (tensor.bytes() > 0) {
    std::memset(tensor.data(), 0, static_cast<size_t>(tensor.bytes()));
  }
}

Tensor to_device(Context& context, ConstTensorView host) {
  Tensor tensor(host.dtype(), host.shape(), context.device());
  check_pair("to_device", host, tensor);
  if (context.device().is_cuda()) {
    cuda::copy_to_device(context.device().index, tensor.view().data(), host.data(), host.bytes());
  } else if (host.bytes() > 0) {
    std::memcpy(tensor.view().data(), host.data(), static_cast<size_t>(host.bytes()));
  }
  return tensor;
}

void to_host(Context& context, ConstTensorView from, TensorView host) {
  check_pair("to_host", from, host);
  if (context.device().is_cuda()) {
    context.stream().copy_to_host(host.data(), from.data(), from.bytes());
  } else if (from.bytes() > 0) {
    std::memcpy(host.data(), from.data(), static_cast<size_t>(from.bytes()));
  }
}

}  // namespace spb
