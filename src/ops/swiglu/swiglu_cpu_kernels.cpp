#include "core/simd/vec.h"
#include "ops/swiglu/swiglu_kernels.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;
namespace {

// gate * sigmoid(gate). The exponential is taken of -|gate|, which cannot overflow and keeps the
// relative error small on both sides: sigmoid(-a) = z / (1 + z) with z = exp(-a).
Vec silu(Vec gate) {
  const Vec zero = broadcast(0.0f);
  const Vec lowest = broadcast(-3.402823466e38f);
  const Vec finite = gate < lowest ? lowest : gate;  // -inf * 0 would be NaN; NaN passes
  const Vec z = exp(finite > zero ? -finite : finite);
  const Vec numerator = finite > zero ? broadcast(1.0f) : z;
  return finite * numerator / (z + 1.0f);
}

}  // namespace

void swiglu_span(const float* gate, const float* up, float* y, int64_t count) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) store(y + c, silu(load(gate + c)) * load(up + c));
  if (c < count) {
    const int rest = static_cast<int>(count - c);
    store_partial(y + c, silu(load_partial(gate + c, rest)) * load_partial(up + c, rest), rest);
  }
}

}  // namespace spb::ops::SPB_ISA
