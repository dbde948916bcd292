#include "core/cuda/not_built.h"
#include "ops/gated_linear_attention/gated_linear_attention_inputs_cuda.h"

namespace spb::ops {

void gated_linear_attention_inputs_cuda(Context&, const GatedLinearAttentionInputsArgs&) {
  cuda::not_built("gated_linear_attention_inputs");
}

}  // namespace spb::ops
