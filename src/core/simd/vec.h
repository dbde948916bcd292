// Vec: a register of floats, as wide as the instruction set this file is compiled for.
//
// Only for `*_cpu_kernels.cpp` files, which the build compiles once per instruction set with
// SPB_ISA naming a namespace (isa_portable, isa_avx2, isa_avx512). Everything here lives in that
// namespace, so the linker never merges code of one instruction set into another.
// Kernels must not call inline functions of the standard library (they would be merged):
// tools/check_isa verifies it on the object files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spb::SPB_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));

// 0, 1, 2, ... kLanes - 1.
inline VecI lane_index() {
#if defined(__AVX512F__)
  return VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return VecI{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return VecI{0, 1, 2, 3};
#endif
}

// Vec{} + x would cost an addition: 0 + x is not x for -0.
inline Vec broadcast(float x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    v[i] = x;
  }
  return v;
#endif
}

inline Vec load(const f16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) {
    // The conversion of core/half.h, repeated on bits: its functions may not be merged across
    // instruction sets.
    const uint32_t magnitude = p[i].bits & 0x7fffu;
    const uint32_t sign = static_cast<uint32_t>(p[i].bits & 0x8000u) << 16;
    uint32_t bits = magnitude << 13;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    x *= 0x1p112f;
    __builtin_memcpy(&bits, &x, sizeof x);
    if (magnitude >= 0x7c00u) bits = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
    if (magnitude > 0x7c00u) bits |= 0x00400000u;
    bits |= sign;
    __builtin_memcpy(&x, &bits, sizeof x);
    v[i] = x;
  }
  return v;
#endif
}

inline void store(bf16* p, Vec v) {
  typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));  // sums of NaN lanes wrap
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VecU quiet = (bits >> 16) | 0x40;
  const VecU out = v != v ? quiet : rounded;
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(out[i]);
}

inline void store(f16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, 0));
#else
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    const float x = v[i];
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t out;
    if (magnitude > 0x7f800000u) {
      out = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x47800000u) {
      out = 0x7c00u;
    } else if (magnitude < 0x38800000u) {
      float small;
      __builtin_memcpy(&small, &magnitude, sizeof small);
      small += 0.5f;
      __builtin_memcpy(&out, &small, sizeof out);
      out -= 0x3f000000u;
    } else {
      out = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    }
    p[i].bits = static_cast<uint16_t>(sign | out);
  }
#endif
}

// First `count` < kLanes elements; the others read as `fill` and are not touched in memory.
template <typename T>
inline Vec load_partial(const T* p, int count, float fill = 0.0f) {
  T padded[kLanes] = {};
  __builtin_memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return lane_index() < count ? load(padded) : broadcast(fill);
}

template <typename T>
inline void store_partial(T* p, Vec v, int count) {
  T padded[kLanes];
  store(padded, v);
  __builtin_memcpy(p, padded, static_cast<size_t>(count) * sizeof(T));
}

#if defined(__AVX512F__)
inline Vec load_partial(const float* p, int count, float fill = 0.0f) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  return (Vec)_mm512_mask_loadu_ps((__m512)broadcast(fill), mask, p);
}

inline void store_partial(float* p, Vec v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), (__m512)v);
}
#elif defined(__AVX2__)
inline Vec load_partial(const float* p, int count, float fill = 0.0f) {
  const VecI mask = lane_index() < count;
  const Vec v = (Vec)_mm256_maskload_ps(p, (__m256i)mask);
  return mask ? v : broadcast(fill);
}

inline void store_partial(float* p, Vec v, int count) {
  _mm256_maskstore_ps(p, (__m256i)(lane_index() < count), (__m256)v);
}
#endif

// Folds the register in half until one lane is left: the same order on every run.
#if defined(__AVX2__)
inline float reduce_add(Vec v) {
#if defined(__AVX512F__)
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 eight = (__m256)v;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float reduce_max(Vec v) {
#if defined(__AVX512F__)
  const __m256 eight =
      _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 eight = (__m256)v;
#endif
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
inline float reduce_add(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline float reduce_max(Vec v) {
  const float even = v[0] > v[2] ? v[0] : v[2];
  const float odd = v[1] > v[3] ? v[1] : v[3];
  return even > odd ? even : odd;
}
#endif

// e^x. Relative error below 2e-7 on [-87, 88]; 0 below -87.33, +inf above 88.72; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec clamped = min(max(x, broadcast(-88.0f)), broadcast(89.0f));
  const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec biased = fma(clamped, broadcast(1.44269504f), shifter);
  const Vec n = biased - shifter;
  // ln 2 in two parts, so that the remainder is exact to the last bits.
  Vec r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  // Scale by 2^n in two halves: 2^128 itself is not a float.
  const VecI exponent = (VecI)biased - (VecI)shifter;
  const VecI half = exponent >> 1;
  const Vec low = (Vec)((half + 127) << 23);
  const Vec high = (Vec)((exponent - half + 127) << 23);
  Vec result = p * low * high;
  result = x < broadcast(-87.3365448f) ? broadcast(0.0f) : result;
  return x != x ? x : result;
}

}  // namespace spb::SPB_ISA
