// weight_codes: from float weights to integer codes with one scale per row and 128 columns.
//
//   code[n, c] = round_half_even(w[n, c] / scale[n, g]),  g = c / 128;  w is about code * scale
//
//   name         shape         dtype  access
//   w            [N, K]        f32    read, finite; the last group may be short
//   importance   [K]           f32    read, finite and not negative; 1 where absent
//   scales       [N, groups]   f32    read by split_codes: finite, above 0
//
// Three ways to the scales:
//   quantize_largest   max |w| / 127 over the group: no code leaves int8
//   search_scales      of 36 scales, 1.00, 0.99 ... 0.65 times the one above, that with the least
//                      sum over c of importance[c] * (w[n, c] - code[n, c] * scale)^2, codes
//                      limited to 127; the larger scale where two do equally well. With importance
//                      = mean of x[c]^2 over calibration inputs this is the error of the output
//                      x . w[n], as far as channels are uncorrelated.
//   split_codes        scales as they are given (a published checkpoint). Codes may then leave
//                      int8; they are kept exactly, as core and residual.
// A group of zeros gets scale 1. Scales below the smallest normal float are raised to it.
//
// Numerics: quotients are f32 divisions rounded once; with bf16_quotient they are rounded to bf16
// before they become integers, as software that keeps weights in bf16 does. The error of a scale is
// summed in f32: partial[c mod 16] += for ascending c, by fused multiply-adds, then halved by
// partial[i] += partial[i + n], n = 8, 4, 2, 1. The same bits for every instruction set and number
// of threads. Cost: 36 passes over w for the search, one otherwise.
//
// Errors: kUsage for wrong shapes; kData, naming row and column or group, for numbers that are not
// finite or out of range, and for codes beyond kMaxCode.
// Source: the SpikingBrain-7B report (2025), W8ASpike.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "spike/spike_matmul/spike_weight.h"

namespace spb::spike {

struct WeightCodes {
  Tensor codes;                      // [N, K] i8
  Tensor scales;                     // [N, groups] f32
  std::vector<CodeExcess> residual;  // codes outside -128 .. 127, sorted

  SpikeWeightSource source() const { return {codes, scales, residual}; }
  double residual_share() const;  // of all codes
};

WeightCodes quantize_largest(Context& context, ConstTensorView w);

WeightCodes search_scales(Context& context, ConstTensorView w, ConstTensorView importance = {});

WeightCodes split_codes(Context& context, ConstTensorView w, ConstTensorView scales,
                        bool bf16_quotient = false);

}  // namespace spb::spike
