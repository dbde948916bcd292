#include "spike/threshold/spike_values.h"

#include <algorithm>

#include "core/tensor_check.h"
#include "spike/threshold/threshold_cuda.h"

namespace spb::spike {
namespace {

constexpr const char* kName = "spike_values";
constexpr int64_t kGrainElements = 16384;  // below this, waking a thread costs more than the work

}  // namespace

void spike_values(Context& context, const SpikeCounts& counts, TensorView y) {
  const Shape& shape = counts.core.shape();
  check(shape.rank() == 2, "{}: core: expected [M, K], got {}", kName, shape.to_string());
  check_tensor(kName, "core", counts.core, DType::kI8, shape);
  check_tensor(kName, "thresholds", counts.thresholds, DType::kF32, Shape{shape[0]});
  check_activation(kName, "y", y, context.device(), shape);
  check_no_overlap(kName, "core", counts.core, "y", y);
  if (context.device().is_cuda()) return spike_values_cuda(context, counts, y);
  const auto* thresholds = counts.thresholds.as<float>();
  const int64_t columns = shape[1];
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, columns));
  context.pool().parallel_for(shape[0], grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const auto* core = counts.core.row_as<int8_t>(m);
      float* out = y.row_as<float>(m);
      for (int64_t c = 0; c < columns; ++c) out[c] = thresholds[m] * static_cast<float>(core[c]);
    }
  });
  for (const Burst& burst : counts.bursts) {
    check(burst.row >= 0 && burst.row < shape[0] && burst.channel >= 0 && burst.channel < columns,
          "{}: bursts: expected places inside {}, got row {}, channel {}", kName, shape.to_string(),
          burst.row, burst.channel);
    const int32_t count = counts.core.row_as<int8_t>(burst.row)[burst.channel] + burst.excess;
    y.row_as<float>(burst.row)[burst.channel] = thresholds[burst.row] * static_cast<float>(count);
  }
}

}  // namespace spb::spike
