// int8_rows: rows rounded to 8-bit numbers with one scale each, in place.
//
//   x[n, c] = scale[n] * code[n, c]      scale and code as core/int8_row.h defines them
//
// x [N, C] f32 (on a CUDA device also bf16, rounded from the f32 product), finite. What a spiking
// model does to keys and values, per token and head, before they enter a cache of floats; a cache
// of 8-bit codes rounds for itself. The same bits everywhere.
// Errors: kUsage for a wrong shape; kData naming row and column of a number that is not finite,
// from a CUDA device as core/cuda/fault.h says. Source: the published W8ASpike code.
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::spike {

void int8_rows(Context& context, TensorView x);

}  // namespace spb::spike
