#include "core/cuda/not_built.h"
#include "spike/threshold/threshold_cuda.h"

namespace spb::spike {

void spike_threshold_cuda(Context&, const ThresholdArgs&) { cuda::not_built("spike_threshold"); }
void spike_values_cuda(Context&, const SpikeCounts&, TensorView) {
  cuda::not_built("spike_values");
}

}  // namespace spb::spike
