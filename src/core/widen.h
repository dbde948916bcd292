// widened: the numbers of a tensor of any float or block format, as f32.
#pragma once

#include "core/buffer.h"

namespace spb {

// A copy in memory of its own; undefined where the view is.
Tensor widened(ConstTensorView view);

}  // namespace spb
