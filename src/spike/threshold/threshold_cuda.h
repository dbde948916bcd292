// The CUDA paths of spike_threshold and spike_values; stubs stand in where CUDA is not built.
// Arguments have been checked.
#pragma once

#include "spike/threshold/threshold.h"

namespace spb::spike {

void spike_threshold_cuda(Context& context, const ThresholdArgs& args);

// Usage error for counts that do not say what they were made of.
void spike_values_cuda(Context& context, const SpikeCounts& counts, TensorView y);

}  // namespace spb::spike
