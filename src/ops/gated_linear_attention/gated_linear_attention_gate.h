// Reading channels and gates; shared by the kernels of both forms.
#pragma once

#include "core/simd/vec.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::SPB_ISA {

inline Vec load_up_to(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, static_cast<int>(count));
}

// The log decay of `count` channels, floored; NaN stays NaN.
inline Vec load_gate(const float* g, int64_t count) {
  const Vec gate = load_up_to(g, count);
  const Vec floor = broadcast(ops::kMinLogDecay);
  return gate < floor ? floor : gate;
}

}  // namespace spb::SPB_ISA
