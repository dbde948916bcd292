// The CPU forms of gated_linear_attention, after its arguments have been checked.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

// From this number of tokens on the chunked form is the faster one.
inline constexpr int64_t kChunkedTokens = 24;

void gated_linear_attention_recurrent(Context& context, const GatedLinearAttentionArgs& args);
void gated_linear_attention_chunked(Context& context, const GatedLinearAttentionArgs& args);

}  // namespace spb::ops
