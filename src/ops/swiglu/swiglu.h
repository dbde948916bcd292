// swiglu: the gated activation of the feed-forward network.
//
//   y[i, c] = gate[i, c] / (1 + exp(-gate[i, c])) * up[i, c]
//
//   name  shape   dtype  access
//   gate  [N, C]  f32    read
//   up    [N, C]  f32    read
//   y     [N, C]  f32    overwritten; may be gate or up
//
// On a CUDA device all three may be bf16.
// Tolerance against the reference: 1e-6 relative; factors gate * sigmoid(gate) below 1.1e-36 may
// become 0. Large negative gates, -inf included, give 0, never NaN. The same bits for every number
// of threads.
// Source: Shazeer 2020, "GLU Variants Improve Transformer".
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

struct SwigluArgs {
  ConstTensorView gate;
  ConstTensorView up;
  TensorView y;
};

void swiglu(Context& context, const SwigluArgs& args);
void swiglu_reference(const SwigluArgs& args);

}  // namespace spb::ops
