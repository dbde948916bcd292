#include "core/cuda/not_built.h"
#include "ops/rope/rope_cuda.h"

namespace spb::ops {

void rope_cuda(Context&, const RopeArgs&) { cuda::not_built("rope"); }

}  // namespace spb::ops
