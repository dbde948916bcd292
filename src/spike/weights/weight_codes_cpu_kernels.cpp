#include "core/simd/exact.h"
#include "spike/weights/weight_codes_kernels.h"

namespace spb::spike::SPB_ISA {
using namespace spb::SPB_ISA;

float scale_error(const ScaleTrial& trial) {
  constexpr int kColumns = 128;
  constexpr int kPartials = 16;
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  const Vec shifter = broadcast(12582912.0f);
  const Vec limit = broadcast(static_cast<float>(kLargestCode));
  const Vec scale = broadcast(trial.scale);
  Vec partials[kPartials / kLanes] = {};
  for (int c = 0; c < kColumns; c += kPartials) {
    for (int p = 0; p < kPartials / kLanes; ++p) {
      const Vec w = load(trial.w + c + p * kLanes);
      const Vec rounded = (w / scale + shifter) - shifter;
      const Vec code = max(min(rounded, limit), -limit);
      const Vec error = fused(-code, scale, w);
      const Vec weighted = load(trial.importance + c + p * kLanes) * error;
      partials[p] = fused(weighted, error, partials[p]);
    }
  }
  float sums[kPartials];
  for (int p = 0; p < kPartials / kLanes; ++p) store(sums + p * kLanes, partials[p]);
  for (int n = kPartials / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sums[i] += sums[i + n];
  }
  return sums[0];
}

}  // namespace spb::spike::SPB_ISA
