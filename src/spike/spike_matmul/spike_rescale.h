// From exact sums to results, the only place where spike_matmul rounds. Included only by kernel
// files; everything is internal to the instruction set they are compiled for.
#pragma once

#include "core/simd/bytes.h"
#include "ops/matmul/matmul_row_output.h"

namespace spb::spike::SPB_ISA {
using namespace spb::SPB_ISA;

// a * b + c rounded once, on every processor: results must not depend on the instruction set.
inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX2__)
  return fma(a, b, c);
#else
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

// The sums plus kLanes corrections, each rounded once.
inline Vec corrected_floats(VecI sums, const int64_t* corrections) {
#if defined(__AVX512DQ__)
  const __m512i low = _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256((__m512i)sums)),
                                       _mm512_loadu_si512(corrections));
  const __m512i high =
      _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)sums, 1)),
                       _mm512_loadu_si512(corrections + 8));
  return (Vec)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtepi64_ps(low)),
                                 _mm512_cvtepi64_ps(high), 1);
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(sums[i] + corrections[i]);
  return v;
#endif
}

// Stores the results of rows first_row, first_row + 1, ... of `rows`, from their sums over groups.
inline void put_results(const ops::RowOutput& out, int64_t token, int64_t first_row, int64_t rows,
                        Vec sums, Vec threshold) {
  const int64_t left = rows - first_row;
  if (left <= 0) return;
  float* y = out.y + token * out.stride + first_row;
  if (left >= kLanes) {
    const Vec bias = out.bias != nullptr ? load(out.bias + first_row) : Vec{};
    const Vec value = fused(threshold, sums, bias);
    store(y, out.accumulate ? load(y) + value : value);
    return;
  }
  const int count = static_cast<int>(left);
  const Vec bias = out.bias != nullptr ? load_partial(out.bias + first_row, count) : Vec{};
  Vec value = fused(threshold, sums, bias);
  if (out.accumulate) value = load_partial(y, count) + value;
  store_partial(y, value, count);
}

}  // namespace spb::spike::SPB_ISA
