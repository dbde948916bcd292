// One row in scalars: what the CPU path needs beside its kernels, and the reference.
#include <algorithm>
#include <cmath>

#include "spike/threshold/threshold_kernels.h"

namespace spb::spike {

float firing_threshold(float sum, int64_t channels, const ThresholdSettings& settings) {
  float mean = sum / static_cast<float>(channels);
  if (settings.bf16_mean) mean = to_float(to_bf16(mean));
  const float threshold = mean / static_cast<float>(settings.k);
  return std::min(std::max(threshold, settings.min_threshold), settings.max_threshold);
}

float spike_count(float x, float threshold, float dead_zone) {
  const float count = std::nearbyint(x / threshold);
  return std::fabs(count) > dead_zone ? count : 0.0f;
}

void check_drives(const ThresholdArgs& args, const FiredRow* rows) {
  const int64_t channels = args.x.shape()[1];
  for (int64_t m = 0; m < args.x.shape()[0]; ++m) {
    if (rows[m].finite && rows[m].largest <= static_cast<float>(kMaxCount)) continue;
    const float* x = args.x.row_as<float>(m);
    const float threshold = args.out->thresholds.as<float>()[m];
    for (int64_t c = 0; c < channels; ++c) {
      check_data(std::isfinite(x[c]),
                 "spike_threshold: x: expected finite numbers, got {} at row {}, channel {}", x[c],
                 m, c);
      // A row that is not finite has no counts; the search goes on to the drive that makes it so.
      check_data(
          !rows[m].finite || std::fabs(x[c] / threshold) <= static_cast<float>(kMaxCount),
          "spike_threshold: x: expected counts up to 2^24, got {} / {} at row {}, channel {}", x[c],
          threshold, m, c);
    }
  }
}

}  // namespace spb::spike
