// The CUDA path of int8_rows; a stub stands in where CUDA is not built.
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::spike {

void int8_rows_cuda(Context& context, TensorView x);

}  // namespace spb::spike
