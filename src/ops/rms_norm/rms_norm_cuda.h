// The CUDA path of rms_norm; a stub stands in where CUDA is not built.
#pragma once

#include "ops/rms_norm/rms_norm.h"

namespace spb::ops {

void rms_norm_cuda(Context& context, const RmsNormArgs& args);

}  // namespace spb::ops
