// The CUDA path of gated_linear_attention_backward; a stub stands in where CUDA is not built.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

namespace spb::ops {

inline constexpr int64_t kMaxCudaBackwardDim = 128;  // of keys, and of values

void gated_linear_attention_backward_cuda(Context& context,
                                          const GatedLinearAttentionBackwardArgs& args);

}  // namespace spb::ops
