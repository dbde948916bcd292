// The CUDA paths of softmax_attention; stubs stand in where CUDA is not built.
#pragma once

#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {

// q and o f32 or bf16.
void softmax_attention_cuda(Context& context, const SoftmaxAttentionArgs& args);
// k and v f32 or bf16. Numbers that are not finite are not reported with i8: they become 0 or the
// largest code.
void append_to_cache_cuda(Context& context, const AppendToCacheArgs& args);

}  // namespace spb::ops
