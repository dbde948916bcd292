#include "ops/moe/grouped_matmul.h"

#include <algorithm>

#include "core/tensor_check.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

void check_offsets(const GroupedMatmulArgs& args) {
  check(!args.offsets.empty(), "grouped_matmul: offsets: expected [E + 1], got none");
  check(args.offsets.front() == 0 && args.offsets.back() == args.x.shape()[0],
        "grouped_matmul: offsets: expected 0 to {}, got {} to {}", args.x.shape()[0],
        args.offsets.front(), args.offsets.back());
  for (size_t e = 0; e + 1 < args.offsets.size(); ++e) {
    check(args.offsets[e] <= args.offsets[e + 1],
          "grouped_matmul: offsets[{}]: expected at least {}, got {}", e + 1, args.offsets[e],
          args.offsets[e + 1]);
  }
}

void check_y(const GroupedMatmulArgs& args, size_t index) {
  const GroupedMatmulTarget& target = args.targets[index];
  const Shape& y = target.y.shape();
  check(y.rank() == 2, "grouped_matmul: target {}: y: expected [rows, N], got {}", index, y);
  check_tensor("grouped_matmul", "y", target.y, args.x.dtype(), Shape{args.x.shape()[0], y[1]});
  check_no_overlap("grouped_matmul", "x", args.x, "y", target.y);
}

// What can be known on the host: the device has the offsets, and one weight for all experts.
void check_on_device(const GroupedMatmulArgs& args) {
  check(!args.offsets.empty(), "grouped_matmul: offsets: expected [E + 1], got none");
  const auto experts = static_cast<int64_t>(args.offsets.size()) - 1;
  for (size_t t = 0; t < args.targets.size(); ++t) {
    check_y(args, t);
    const auto& weights = args.targets[t].weights;
    check(weights.size() == 1 && weights[0] != nullptr && weights[0]->defined(),
          "grouped_matmul: target {}: expected one prepared weight for all experts, got {}", t,
          weights.size());
    const int64_t outputs = args.targets[t].y.shape()[1];
    const int64_t columns = args.x.shape()[1];
    check(weights[0]->rows() == experts * outputs && weights[0]->columns() == columns,
          "grouped_matmul: target {}: expected a weight [{}, {}], got [{}, {}]", t,
          experts * outputs, columns, weights[0]->rows(), weights[0]->columns());
  }
}

void check_target(const GroupedMatmulArgs& args, size_t index) {
  const GroupedMatmulTarget& target = args.targets[index];
  const size_t experts = args.offsets.size() - 1;
  check(target.weights.size() == experts,
        "grouped_matmul: target {}: expected weights of {} experts, got {}", index, experts,
        target.weights.size());
  check_y(args, index);
  const Shape& y = target.y.shape();
  for (size_t e = 0; e < experts; ++e) {
    if (args.offsets[e] == args.offsets[e + 1]) continue;
    const MatmulWeight* weight = target.weights[e];
    check(weight != nullptr && weight->defined(),
          "grouped_matmul: target {}: expert {}: expected a prepared weight, got none", index, e);
    check(weight->rows() == y[1] && weight->columns() == args.x.shape()[1],
          "grouped_matmul: target {}: expert {}: expected a weight [{}, {}], got [{}, {}]", index,
          e, y[1], args.x.shape()[1], weight->rows(), weight->columns());
  }
}

}  // namespace

std::vector<MatmulWeight> prepare_expert_weights(Context& context, ConstTensorView stack,
                                                 bool allow_repack) {
  const Shape& shape = stack.shape();
  check(stack.defined() && shape.rank() == 3,
        "grouped_matmul: stack of weights: expected [E, N, K], got {}", shape);
  const bool on_device = context.device().is_cuda();
  const int64_t matrices = on_device ? 1 : shape[0];
  const int64_t rows = shape[0] * shape[1] / std::max<int64_t>(1, matrices);
  std::vector<MatmulWeight> weights;
  for (int64_t m = 0; m < matrices; ++m) {
    const ConstTensorView matrix = stack.rows(m * rows, rows).reshaped(Shape{rows, shape[2]});
    // A device reads experts as planes.
    weights.push_back(prepare_matmul_weight(context, matrix, allow_repack && !on_device));
  }
  return weights;
}

void grouped_matmul(Context& context, const GroupedMatmulArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 2, "grouped_matmul: x: expected [rows, K], got {}", shape);
  check_activation("grouped_matmul", "x", args.x, context.device(), shape);
  if (context.device().is_cuda()) {
    check_on_device(args);
    return grouped_matmul_cuda(context, args);
  }
  check_offsets(args);
  for (size_t t = 0; t < args.targets.size(); ++t) check_target(args, t);
  const Arena::Scope scope(context.arena());
  auto* targets = context.arena().allocate<MatmulTarget>(static_cast<int64_t>(args.targets.size()));
  for (size_t e = 0; e + 1 < args.offsets.size(); ++e) {
    const int64_t first = args.offsets[e];
    const int64_t count = args.offsets[e + 1] - first;
    if (count == 0) continue;
    for (size_t t = 0; t < args.targets.size(); ++t) {
      const GroupedMatmulTarget& target = args.targets[t];
      new (&targets[t]) MatmulTarget{target.weights[e], {}, target.y.rows(first, count)};
    }
    matmul(context, {args.x.rows(first, count), {targets, args.targets.size()}});
  }
}

}  // namespace spb::ops
