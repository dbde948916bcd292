#include "core/cuda/not_built.h"
#include "ops/matmul/gated_matmul_cuda.h"

namespace spb::ops {

bool gated_matmul_fuses(Context&, const GatedMatmulArgs&) { return false; }
void gated_matmul_fused(Context&, const GatedMatmulArgs&) { cuda::not_built("gated_matmul"); }

}  // namespace spb::ops
