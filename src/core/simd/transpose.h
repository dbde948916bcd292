// Transposition of a square of floats held in registers, kLanes registers of kLanes lanes, and sums
// over the lanes of each. Shared by matmul and the attention operators.
//
// Included by `*_cpu_kernels.cpp` files only; see vec.h.
#pragma once

#include "core/simd/vec.h"

namespace spb::SPB_ISA {

// Two registers exchange blocks of kWidth lanes:
//   exchange_low:  lane l = (l & kWidth) ? b[l - kWidth] : a[l]
//   exchange_high: lane l = (l & kWidth) ? b[l] : a[l + kWidth]
template <int kWidth>
inline Vec exchange_low(Vec a, Vec b) {
#if defined(__AVX512F__)
  const auto x = (__m512)a;
  const auto y = (__m512)b;
  if constexpr (kWidth == 8) return (Vec)_mm512_shuffle_f32x4(x, y, 0x44);
  if constexpr (kWidth == 4) return (Vec)_mm512_mask_shuffle_f32x4(x, 0xf0f0, y, y, 0xa0);
  if constexpr (kWidth == 2)
    return (Vec)_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  if constexpr (kWidth == 1) return (Vec)_mm512_mask_moveldup_ps(x, 0xaaaa, y);
#elif defined(__AVX2__)
  const auto x = (__m256)a;
  const auto y = (__m256)b;
  if constexpr (kWidth == 4) return (Vec)_mm256_permute2f128_ps(x, y, 0x20);
  if constexpr (kWidth == 2)
    return (Vec)_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)));
  if constexpr (kWidth == 1) return (Vec)_mm256_blend_ps(x, _mm256_moveldup_ps(y), 0xaa);
#else
  if constexpr (kWidth == 2) return Vec{a[0], a[1], b[0], b[1]};
  if constexpr (kWidth == 1) return Vec{a[0], b[0], a[2], b[2]};
#endif
}

template <int kWidth>
inline Vec exchange_high(Vec a, Vec b) {
#if defined(__AVX512F__)
  const auto x = (__m512)a;
  const auto y = (__m512)b;
  if constexpr (kWidth == 8) return (Vec)_mm512_shuffle_f32x4(x, y, 0xee);
  if constexpr (kWidth == 4) return (Vec)_mm512_mask_shuffle_f32x4(y, 0x0f0f, x, x, 0xf5);
  if constexpr (kWidth == 2)
    return (Vec)_mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  if constexpr (kWidth == 1) return (Vec)_mm512_mask_movehdup_ps(y, 0x5555, x);
#elif defined(__AVX2__)
  const auto x = (__m256)a;
  const auto y = (__m256)b;
  if constexpr (kWidth == 4) return (Vec)_mm256_permute2f128_ps(x, y, 0x31);
  if constexpr (kWidth == 2)
    return (Vec)_mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)));
  if constexpr (kWidth == 1) return (Vec)_mm256_blend_ps(_mm256_movehdup_ps(x), y, 0xaa);
#else
  if constexpr (kWidth == 2) return Vec{a[2], a[3], b[2], b[3]};
  if constexpr (kWidth == 1) return Vec{a[1], b[1], a[3], b[3]};
#endif
}

template <int kWidth = kLanes / 2>
inline void transpose(Vec* rows) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kWidth) != 0) continue;
    const Vec low = exchange_low<kWidth>(rows[i], rows[i + kWidth]);
    rows[i + kWidth] = exchange_high<kWidth>(rows[i], rows[i + kWidth]);
    rows[i] = low;
  }
  if constexpr (kWidth > 1) transpose<kWidth / 2>(rows);
}

// Lane i of the result is the sum over the lanes of rows[i]. Overwrites rows.
template <int kWidth = kLanes / 2>
inline Vec reduce_add_each(Vec* rows) {
  for (int i = 0; i < kWidth; ++i) {
    rows[i] = exchange_low<kWidth>(rows[i], rows[i + kWidth]) +
              exchange_high<kWidth>(rows[i], rows[i + kWidth]);
  }
  if constexpr (kWidth > 1) return reduce_add_each<kWidth / 2>(rows);
  return rows[0];
}

}  // namespace spb::SPB_ISA
