#include <algorithm>
#include <cmath>

#include "spike/threshold/threshold_kernels.h"

namespace spb::spike {
namespace {

float canonical_sum(const float* x, int64_t channels) {
  float partial[kThresholdPartials] = {};
  for (int64_t c = 0; c < channels; ++c) partial[c % kThresholdPartials] += std::fabs(x[c]);
  for (int64_t n = kThresholdPartials / 2; n > 0; n /= 2) {
    for (int64_t i = 0; i < n; ++i) partial[i] += partial[i + n];
  }
  return partial[0];
}

}  // namespace

void spike_threshold_reference(const ThresholdArgs& args) {
  SpikeCounts& out = *args.out;
  const int64_t channels = args.x.shape()[1];
  out.bursts.clear();
  out.active.clear();
  out.active_begin.assign(args.want_active ? 1 : 0, 0);
  for (int64_t m = 0; m < args.x.shape()[0]; ++m) {
    const float* x = args.x.row_as<float>(m);
    const float sum = canonical_sum(x, channels);
    const float threshold = firing_threshold(sum, channels, args.settings);
    out.thresholds.as<float>()[m] = threshold;
    for (int32_t c = 0; c < channels; ++c) {
      const auto count = static_cast<int32_t>(
          spike_count(x[c], threshold, static_cast<float>(args.settings.dead_zone)));
      const int32_t core = std::clamp(count, -kCoreLimit, kCoreLimit);
      out.core.row_as<int8_t>(m)[c] = static_cast<int8_t>(core);
      if (count != core) out.bursts.push_back({static_cast<int32_t>(m), c, count - core});
      if (count != 0 && args.want_active) out.active.push_back(c);
    }
    if (args.want_active) out.active_begin.push_back(static_cast<int64_t>(out.active.size()));
  }
}

}  // namespace spb::spike
