// The CPU forms of gated_linear_attention, after its arguments have been checked.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

// Where the chunked form is the faster one (measured). More query heads per state give the
// recurrent form enough to do with every element that it loads, and it does fewer operations.
inline constexpr int64_t kChunkedTokens = 8;
inline constexpr int64_t kChunkedGroup = 2;

// max(x, 0) of a contiguous tensor, in the context's arena.
TensorView rectified(Context& context, const ConstTensorView& x);

void gated_linear_attention_recurrent(Context& context, const GatedLinearAttentionArgs& args);
void gated_linear_attention_chunked(Context& context, const GatedLinearAttentionArgs& args);

}  // namespace spb::ops
