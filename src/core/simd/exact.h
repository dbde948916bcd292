// Arithmetic with the same bits on every processor: multiply-add rounded once, integers to floats
// rounded once.
//
// Included by `*_cpu_kernels.cpp` files only; see vec.h.
#pragma once

#include "core/simd/bytes.h"

namespace spb::SPB_ISA {

// a * b + c rounded once. `fma` of vec.h rounds twice where the processor has no such instruction.
inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX2__)
  return fma(a, b, c);
#else
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

// a[i] + b[i] in 64 bits, rounded once to a float; b holds kLanes numbers.
inline Vec exact_sum_to_floats(VecI a, const int64_t* b) {
#if defined(__AVX512DQ__)
  const __m512i low = _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256((__m512i)a)),
                                       _mm512_loadu_si512(b));
  const __m512i high = _mm512_add_epi64(
      _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)a, 1)), _mm512_loadu_si512(b + 8));
  return (Vec)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtepi64_ps(low)),
                                 _mm512_cvtepi64_ps(high), 1);
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(a[i] + b[i]);
  return v;
#endif
}

}  // namespace spb::SPB_ISA
