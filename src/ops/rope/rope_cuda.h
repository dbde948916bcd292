// The CUDA path of rope; a stub stands in where CUDA is not built.
#pragma once

#include "ops/rope/rope.h"

namespace spb::ops {

void rope_cuda(Context& context, const RopeArgs& args);

}  // namespace spb::ops
