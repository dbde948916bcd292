// The CUDA paths of softmax_attention; stubs stand in where CUDA is not built.
#pragma once

#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {

// Sequences of one token that a launch takes together: parameters of a kernel hold 4 KiB.
inline constexpr int64_t kMaxBatchedSequences = 48;

// q and o f32 or bf16. Of a batch only up to kMaxBatchedSequences sequences of one token each.
void softmax_attention_cuda(Context& context, const SoftmaxAttentionArgs& args);
// k and v f32 or bf16; a batch as above. Numbers that are not finite are not reported with i8: they
// become 0 or the largest code.
void append_to_cache_cuda(Context& context, const AppendToCacheArgs& args);

}  // namespace spb::ops
