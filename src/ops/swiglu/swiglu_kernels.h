// The inside of swiglu: the CPU path and its kernels, one per instruction set. Arguments have been
// checked.
#pragma once

#include <cstdint>

#include "ops/swiglu/swiglu.h"

namespace spb::ops {

void swiglu_cpu(Context& context, const SwigluArgs& args);

namespace isa_portable {
void swiglu_span(const float* gate, const float* up, float* y, int64_t count);
}
namespace isa_avx2 {
void swiglu_span(const float* gate, const float* up, float* y, int64_t count);
}
namespace isa_avx512 {
void swiglu_span(const float* gate, const float* up, float* y, int64_t count);
}

}  // namespace spb::ops
