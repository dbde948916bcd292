// The CUDA path of swiglu; a stub stands in where CUDA is not built.
#pragma once

#include "ops/swiglu/swiglu.h"

namespace spb::ops {

void swiglu_cuda(Context& context, const SwigluArgs& args);

}  // namespace spb::ops
