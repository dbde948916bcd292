// The CPU path of gated_linear_attention_backward, after its arguments have been checked.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

namespace spb::ops {

// One sequence.
void gated_linear_attention_backward_cpu(Context& context,
                                         const GatedLinearAttentionBackwardArgs& args);

}  // namespace spb::ops
