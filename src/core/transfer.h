// Moving tensors between the host and the device of a Context, and plain copies and zeros there.
//
// On the CPU these are memory copies. On a CUDA device they join the context's stream; `to_host`
// waits for everything before it.
#pragma once

#include <span>

#include "core/buffer.h"
#include "core/context.h"

namespace spb {

// `to` = `from`, both on the context's device, contiguous, of the same dtype and shape.
void copy_tensor(Context& context, ConstTensorView from, TensorView to);
void fill_zero(Context& context, TensorView tensor);  // contiguous

// Host tensor -> memory of its own on a device, finished on return.
Tensor to_device(const Device& device, ConstTensorView host);
inline Tensor to_device(Context& context, ConstTensorView host) {
  return to_device(context.device(), host);
}
// The same into a tensor that is there. `host` nullptr: zeros.
void overwrite(Tensor& tensor, const std::byte* host);
// Any tensor -> a copy on the host, after all work of its device, finished on return.
Tensor to_host(const Tensor& tensor);
// Device tensor -> host memory of the same size.
void to_host(Context& context, ConstTensorView from, TensorView host);

// A host array as the device sees it: itself on the CPU, else a copy in the context's arena.
template <typename T>
const T* on_device(Context& context, std::span<const T> host) {
  if (!context.device().is_cuda()) return host.data();
  T* copy = context.arena().allocate<T>(static_cast<int64_t>(host.size()));
  context.stream().copy_to_device(copy, host.data(), static_cast<int64_t>(host.size_bytes()));
  return copy;
}

}  // namespace spb
