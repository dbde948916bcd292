#include "ops/matmul/gated_matmul.h"

#include "core/tensor_check.h"
#include "ops/matmul/gated_matmul_cuda.h"
#include "ops/swiglu/swiglu.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_matmul";

void check_args(const Device& device, const GatedMatmulArgs& args) {
  check(args.gate != nullptr && args.up != nullptr && args.gate->defined() && args.up->defined(),
        "{}: expected two weights", kName);
  check(args.gate->rows() == args.up->rows() && args.gate->columns() == args.up->columns(),
        "{}: up: expected a weight [{}, {}], got [{}, {}]", kName, args.gate->rows(),
        args.gate->columns(), args.up->rows(), args.up->columns());
  const Shape& x = args.x.shape();
  check(x.rank() == 2 && x[1] == args.gate->columns(), "{}: x: expected [M, {}], got {}", kName,
        args.gate->columns(), x);
  check_activation(kName, "x", args.x, device, x);
  check_tensor(kName, "y", args.y, args.x.dtype(), Shape{x[0], args.gate->rows()});
  check_no_overlap(kName, "x", args.x, "y", args.y);
}

}  // namespace

void gated_matmul(Context& context, const GatedMatmulArgs& args) {
  check_args(context.device(), args);
  if (args.y.shape().elements() == 0) return;
  if (gated_matmul_fuses(context, args)) return gated_matmul_fused(context, args);
  const Arena::Scope scope(context.arena());
  const TensorView up = context.arena().tensor(args.y.dtype(), args.y.shape());
  const MatmulTarget targets[] = {{args.gate, {}, args.y}, {args.up, {}, up}};
  matmul(context, {args.x, targets});
  swiglu(context, {args.y, up, args.y});
}

}  // namespace spb::ops
