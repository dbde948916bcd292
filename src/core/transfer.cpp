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

Tensor to_device(const Device& device, ConstTensorView host) {
  Tensor tensor(host.dtype(), host.shape(), device);
  check_pair("to_device", host, tensor);
  if (host.bytes() > 0) overwrite(tensor, host.data());
  return tensor;
}

void overwrite(Tensor& tensor, const std::byte* host) {
  std::byte* to = tensor.view().data();
  const int64_t bytes = tensor.view().bytes();
  if (tensor.device().is_cuda()) {
    const int device = tensor.device().index;
    host == nullptr ? cuda::fill_zero(device, to, bytes)
                    : cuda::copy_to_device(device, to, host, bytes);
  } else if (host == nullptr) {
    std::memset(to, 0, static_cast<size_t>(bytes));
  } else {
    std::memcpy(to, host, static_cast<size_t>(bytes));
  }
}

Tensor to_host(const Tensor& tensor) {
  Tensor host(tensor.dtype(), tensor.shape());
  std::byte* to = host.view().data();
  const ConstTensorView from = tensor;
  if (tensor.device().is_cuda()) {
    cuda::copy_to_host(tensor.device().index, to, from.data(), from.bytes());
  } else if (from.bytes() > 0) {
    std::memcpy(to, from.data(), static_cast<size_t>(from.bytes()));
  }
  return host;
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
