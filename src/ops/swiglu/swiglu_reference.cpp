#include <cmath>

#include "ops/swiglu/swiglu.h"

namespace spb::ops {
namespace {

double silu(double gate) {
  if (std::isinf(gate) && gate < 0) return 0;  // the limit; the formula would say inf / inf
  return gate / (1.0 + std::exp(-gate));
}

}  // namespace

void swiglu_reference(const SwigluArgs& args) {
  for (int64_t i = 0; i < args.gate.shape()[0]; ++i) {
    const float* gate = args.gate.row_as<float>(i);
    const float* up = args.up.row_as<float>(i);
    float* y = args.y.row_as<float>(i);
    for (int64_t c = 0; c < args.gate.shape()[1]; ++c) {
      y[c] = static_cast<float>(silu(gate[c]) * up[c]);
    }
  }
}

}  // namespace spb::ops
