#include "ops/swiglu/swiglu.h"

#include "core/tensor_check.h"
#include "ops/swiglu/swiglu_kernels.h"

namespace spb::ops {

void swiglu(Context& context, const SwigluArgs& args) {
  const Shape& shape = args.gate.shape();
  check(shape.rank() == 2, "swiglu: gate: expected [N, C], got {}", shape);
  check_tensor("swiglu", "gate", args.gate, DType::kF32, shape);
  check_tensor("swiglu", "up", args.up, DType::kF32, shape);
  check_tensor("swiglu", "y", args.y, DType::kF32, shape);
  check_same_or_no_overlap("swiglu", "gate", args.gate, "y", args.y);
  check_same_or_no_overlap("swiglu", "up", args.up, "y", args.y);
  if (shape.elements() > 0) swiglu_cpu(context, args);
}

}  // namespace spb::ops
