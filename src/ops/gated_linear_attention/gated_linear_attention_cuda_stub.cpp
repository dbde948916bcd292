#include "core/cuda/not_built.h"
#include "ops/gated_linear_attention/gated_linear_attention_cuda.h"

namespace spb::ops {

void gated_linear_attention_cuda(Context&, const GatedLinearAttentionArgs&) {
  cuda::not_built("gated_linear_attention");
}

}  // namespace spb::ops
