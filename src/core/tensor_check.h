// Checks of tensor arguments that every operator makes, with the messages of core/error.h:
// "rms_norm: y: expected f32 [2, 64], got f16 [2, 32]".
#pragma once

#include <string_view>

#include "core/device.h"
#include "core/tensor_view.h"

namespace spb {

// Usage error unless the tensor is defined (or has no elements), and has this dtype and shape.
void check_tensor(std::string_view operation, std::string_view argument,
                  const ConstTensorView& tensor, DType dtype, const Shape& shape);

// The same for values between operators: f32, on a CUDA device also bf16.
void check_activation(std::string_view operation, std::string_view argument,
                      const ConstTensorView& tensor, const Device& device, const Shape& shape);

// Usage error if the two tensors have bytes in common. Columns of one matrix side by side do not.
void check_no_overlap(std::string_view operation, std::string_view first_name,
                      const ConstTensorView& first, std::string_view second_name,
                      const ConstTensorView& second);

// As check_no_overlap, but allows the two to be exactly the same memory.
void check_same_or_no_overlap(std::string_view operation, std::string_view first_name,
                              const ConstTensorView& first, std::string_view second_name,
                              const ConstTensorView& second);

}  // namespace spb
