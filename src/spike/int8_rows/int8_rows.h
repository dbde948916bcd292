// int8_rows: rows rounded to 8-bit numbers with one scale each, in place.
//
//   scale[n] = clamp(max_c |x[n, c]| / 127, 1e-5, 1e4)
//   q[n, c]  = clamp(round_half_even(x[n, c] / scale[n]), -128, 127)
//   x[n, c]  = q[n, c] * scale[n]
//
// x [N, C] f32, finite. What a spiking model does to keys and values, per token and head, before
// they enter the cache. f32 divisions and products, rounded once each: the same bits everywhere.
// Errors: kUsage for a wrong shape; kData naming row and column of a number that is not finite.
// Source: the published W8ASpike code.
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::spike {

void int8_rows(Context& context, TensorView x);

}  // namespace spb::spike
