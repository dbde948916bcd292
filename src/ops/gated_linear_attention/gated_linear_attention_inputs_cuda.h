// The CUDA path of gated_linear_attention_inputs; a stub stands in where CUDA is not built.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

void gated_linear_attention_inputs_cuda(Context& context,
                                        const GatedLinearAttentionInputsArgs& args);

}  // namespace spb::ops
