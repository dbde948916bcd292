// The fused kernel of gated_matmul; a stub stands in where CUDA is not built.
#pragma once

#include "ops/matmul/gated_matmul.h"

namespace spb::ops {

// Whether the kernel takes these arguments, and is faster than separate operators.
bool gated_matmul_fuses(Context& context, const GatedMatmulArgs& args);
void gated_matmul_fused(Context& context, const GatedMatmulArgs& args);

}  // namespace spb::ops
