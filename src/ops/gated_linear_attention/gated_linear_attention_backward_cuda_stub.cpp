#include "core/cuda/not_built.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_cuda.h"

namespace spb::ops {

void gated_linear_attention_backward_cuda(Context&, const GatedLinearAttentionBackwardArgs&) {
  cuda::not_built("gated_linear_attention_backward");
}

}  // namespace spb::ops
