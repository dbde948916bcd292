// FlushSubnormals: until the end of its scope, arithmetic of this thread takes numbers below the
// smallest normal one (1.2e-38) for 0. x86 processors spend over a hundred cycles on each operation
// with such a number, which products of many decays pass through on their way to 0. Elsewhere they
// cost nothing, and nothing is changed. For kernel files, see vec.h.
#pragma once

#include "core/simd/vec.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace spb::SPB_ISA {

#if defined(__SSE__)
class FlushSubnormals {
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kResults | kOperands); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  static constexpr unsigned kResults = 1u << 15;
  static constexpr unsigned kOperands = 1u << 6;
  unsigned before_;
};
#else
struct FlushSubnormals {
  ~FlushSubnormals() {}  // used by being there
};
#endif

}  // namespace spb::SPB_ISA
