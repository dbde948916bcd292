#include "core/cuda/not_built.h"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {

void softmax_attention_cuda(Context&, const SoftmaxAttentionArgs&) {
  cuda::not_built("softmax_attention");
}
void append_to_cache_cuda(Context&, const AppendToCacheArgs&) {
  cuda::not_built("append_to_cache");
}

}  // namespace spb::ops
