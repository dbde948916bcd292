// Integer vectors beside Vec: products of unsigned and signed bytes summed per 32-bit lane.
// The same rules as for vec.h apply.
#pragma once

#include "core/simd/vec.h"

namespace spb::SPB_ISA {

typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));

inline VecI load_int(const void* p) {
  VecI v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline VecI broadcast_int(int32_t x) { return VecI{} + x; }

// The four bytes at p in every lane.
inline VecI broadcast_quad(const void* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return broadcast_int(quad);
}

// The float at p in every lane.
inline Vec broadcast_float(const float* p) { return (Vec)broadcast_quad(p); }

inline Vec to_floats(VecI v) { return __builtin_convertvector(v, Vec); }

// kLanes bytes as unsigned or signed integers.
inline VecI load_widened(const uint8_t* p) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  VecI v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}

inline VecI load_widened(const int8_t* p) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  VecI v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}

// The low byte of every lane.
inline void store_low_bytes(int8_t* p, VecI v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
  const __m256i low_bytes = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));
  const __m128i pairs =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(low_bytes), _mm256_extracti128_si256(low_bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), pairs);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(v[i]);
#endif
}

inline int32_t reduce_add(VecI v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

inline int32_t reduce_max(VecI v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

// sum + the products of the four unsigned bytes of each lane of u with the signed ones of s.
// `kBits` bounds u: below 2^kBits. Exact in every case.
template <int kBits>
inline VecI dot_bytes(VecI sum, VecI u, VecI s) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#elif defined(__AVX2__)
  if constexpr (kBits < 8) {  // two products fit 16 bits
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)s);
    return sum + (VecI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  } else {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)u, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16((__m256i)s, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16((__m256i)u, 8), _mm256_srai_epi16((__m256i)s, 8));
    return sum + (VecI)even + (VecI)odd;
  }
#else
  for (int b = 0; b < 4; ++b) {
    sum += ((u >> (8 * b)) & 255) * ((VecI)((VecU)s << (24 - 8 * b)) >> 24);
  }
  return sum;
#endif
}

}  // namespace spb::SPB_ISA
