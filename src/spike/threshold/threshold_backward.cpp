#include <algorithm>

#include "core/tensor_check.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

void spike_threshold_backward(Context& context, const ThresholdBackwardArgs& args) {
  const Shape& shape = args.core.shape();
  check(shape.rank() == 2, "spike_threshold_backward: core: expected [M, K], got {}", shape);
  check(args.dead_zone >= 0, "spike_threshold_backward: dead zone: expected 0 or more, got {}",
        args.dead_zone);
  check_tensor("spike_threshold_backward", "core", args.core, DType::kI8, shape);
  check_tensor("spike_threshold_backward", "d_y", args.d_y, DType::kF32, shape);
  check_tensor("spike_threshold_backward", "d_x", args.d_x, DType::kF32, shape);
  check_same_or_no_overlap("spike_threshold_backward", "d_y", args.d_y, "d_x", args.d_x);
  check_no_overlap("spike_threshold_backward", "core", args.core, "d_x", args.d_x);
  if (shape.elements() == 0) return;
  const int64_t channels = shape[1];
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const int8_t* core = args.core.row_as<int8_t>(m);
      const float* d_y = args.d_y.row_as<float>(m);
      float* d_x = args.d_x.row_as<float>(m);
      for (int64_t c = 0; c < channels; ++c) {
        d_x[c] = args.dead_zone == 0 || core[c] != 0 ? d_y[c] : 0.0f;
      }
    }
  };
  context.pool().parallel_for(shape[0], std::max<int64_t>(1, 16384 / channels), work);
}

}  // namespace spb::spike
