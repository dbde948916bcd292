#include "ops/swiglu/swiglu.h"

#include "core/tensor_check.h"
#include "ops/swiglu/swiglu_cuda.h"
#include "ops/swiglu/swiglu_kernels.h"

namespace spb::ops {

void swiglu(Context& context, const SwigluArgs& args) {
  const Shape& shape = args.gate.shape();
  check(shape.rank() == 2, "swiglu: gate: expected [N, C], got {}", shape);
  check_activation("swiglu", "gate", args.gate, context.device(), shape);
  check_tensor("swiglu", "up", args.up, args.gate.dtype(), shape);
  check_tensor("swiglu", "y", args.y, args.gate.dtype(), shape);
  check_same_or_no_overlap("swiglu", "gate", args.gate, "y", args.y);
  check_same_or_no_overlap("swiglu", "up", args.up, "y", args.y);
  if (shape.elements() == 0) return;
  context.device().is_cuda() ? swiglu_cuda(context, args) : swiglu_cpu(context, args);
}

}  // namespace spb::ops
