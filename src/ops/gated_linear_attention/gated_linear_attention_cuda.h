// The CUDA path of gated_linear_attention; a stub stands in where CUDA is not built.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

inline constexpr int64_t kMaxCudaKeyDim = 256;

void gated_linear_attention_cuda(Context& context, const GatedLinearAttentionArgs& args);

}  // namespace spb::ops
