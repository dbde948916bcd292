// spike_values: the activations that spike counts stand for.
//
//   y[m, c] = v[m] * s[m, c]
//
// counts as spike_threshold wrote them, y [M, K] f32 (on a CUDA device also bf16) overwritten; y
// may be the x that the counts were made of. One f32 product each, the same bits everywhere; bf16
// is rounded from it. Usage error when shapes differ.
#pragma once

#include "core/context.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

void spike_values(Context& context, const SpikeCounts& counts, TensorView y);

}  // namespace spb::spike
