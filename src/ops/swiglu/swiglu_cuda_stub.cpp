#include "core/cuda/not_built.h"
#include "ops/swiglu/swiglu_cuda.h"

namespace spb::ops {

void swiglu_cuda(Context&, const SwigluArgs&) { cuda::not_built("swiglu"); }

}  // namespace spb::ops
