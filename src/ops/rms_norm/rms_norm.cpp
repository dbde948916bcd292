#include "ops/rms_norm/rms_norm.h"

#include <cmath>

#include "core/tensor_check.h"
#include "ops/rms_norm/rms_norm_cuda.h"
#include "ops/rms_norm/rms_norm_kernels.h"

namespace spb::ops {
namespace {

void check_args(const Device& device, const RmsNormArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 2 && shape[1] > 0, "rms_norm: x: expected [N, C] with C > 0, got {}",
        shape);
  check(args.eps > 0 && std::isfinite(args.eps), "rms_norm: eps: expected a number > 0, got {}",
        args.eps);
  check_activation("rms_norm", "x", args.x, device, shape);
  check_tensor("rms_norm", "weight", args.weight, DType::kF32, Shape{shape[1]});
  check_tensor("rms_norm", "y", args.y, args.x.dtype(), shape);
  if (args.accumulate) {
    check_no_overlap("rms_norm", "x", args.x, "y", args.y);
  } else {
    check_same_or_no_overlap("rms_norm", "x", args.x, "y", args.y);
  }
  check_no_overlap("rms_norm", "weight", args.weight, "y", args.y);
  if (!args.residual.defined()) return;
  check_activation("rms_norm", "residual", args.residual, device, shape);
  check_no_overlap("rms_norm", "residual", args.residual, "x", args.x);
  check_no_overlap("rms_norm", "residual", args.residual, "weight", args.weight);
  check_no_overlap("rms_norm", "residual", args.residual, "y", args.y);
}

}  // namespace

void rms_norm(Context& context, const RmsNormArgs& args) {
  check_args(context.device(), args);
  if (context.device().is_cuda()) return rms_norm_cuda(context, args);
  rms_norm_cpu(context, args);
}

}  // namespace spb::ops
