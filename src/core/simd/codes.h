// Code: a signed byte that loads as a float, beside f16 and bf16 of vec.h, whose rules apply.
#pragma once

#include "core/simd/bytes.h"

namespace spb::SPB_ISA {

struct Code {
  int8_t value;
};

inline Vec load(const Code* p) { return to_floats(load_widened(&p->value)); }

}  // namespace spb::SPB_ISA
