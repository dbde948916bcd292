#include "spike/threshold/threshold.h"

#include <cmath>
#include <limits>

#include "core/tensor_check.h"
#include "ops/swiglu/swiglu.h"
#include "spike/threshold/threshold_cuda.h"
#include "spike/threshold/threshold_kernels.h"

namespace spb::spike {
namespace {

void check_settings(const ThresholdSettings& settings) {
  const auto k = static_cast<float>(settings.k);
  check(std::isfinite(k) && k > 0, "spike_threshold: k: expected a positive number, got {}",
        settings.k);
  check(settings.min_threshold > 0 && settings.min_threshold <= settings.max_threshold &&
            std::isfinite(settings.max_threshold),
        "spike_threshold: threshold limits: expected 0 < min <= max, got {} and {}",
        settings.min_threshold, settings.max_threshold);
  check(settings.dead_zone >= 0 && settings.dead_zone <= kMaxCount,
        "spike_threshold: dead zone: expected 0 to {}, got {}", kMaxCount, settings.dead_zone);
}

// Drives that are those of swiglu, in the context's arena.
void threshold_of_swiglu(Context& context, const ThresholdArgs& args) {
  const Arena::Scope scope(context.arena());
  const TensorView drives = context.arena().tensor(args.x.shape());
  ops::swiglu(context, {args.x, args.up, drives});
  ThresholdArgs plain = args;
  plain.x = drives;
  plain.up = {};
  spike_threshold_cpu(context, plain);
}

}  // namespace

void spike_threshold(Context& context, const ThresholdArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 2, "spike_threshold: x: expected [M, K], got {}", shape);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(shape[0] == 0 || (shape[0] <= kMost && shape[1] >= 1 && shape[1] <= kMost),
        "spike_threshold: x: expected up to 2^31 - 1 rows of 1 to 2^31 - 1 channels, got {}",
        shape);
  check(args.out != nullptr, "spike_threshold: out: expected counts to write to, got none");
  check_settings(args.settings);
  check_activation("spike_threshold", "x", args.x, context.device(), shape);
  if (args.up.defined()) {
    check_tensor("spike_threshold", "up", args.up, args.x.dtype(), shape);
    check_no_overlap("spike_threshold", "up", args.up, "core", args.out->core);
    check_no_overlap("spike_threshold", "up", args.up, "thresholds", args.out->thresholds);
  }
  check_tensor("spike_threshold", "core", args.out->core, DType::kI8, shape);
  check_tensor("spike_threshold", "thresholds", args.out->thresholds, DType::kF32, Shape{shape[0]});
  check_no_overlap("spike_threshold", "x", args.x, "core", args.out->core);
  check_no_overlap("spike_threshold", "x", args.x, "thresholds", args.out->thresholds);
  check_no_overlap("spike_threshold", "core", args.out->core, "thresholds", args.out->thresholds);
  if (shape[0] > 0 && !context.device().is_cuda()) {
    args.up.defined() ? threshold_of_swiglu(context, args) : spike_threshold_cpu(context, args);
    return;
  }
  args.out->bursts.clear();
  args.out->active.clear();
  args.out->active_begin.assign(args.want_active ? 1 : 0, 0);
  if (shape[0] > 0) spike_threshold_cuda(context, args);
}

}  // namespace spb::spike
