// Reads 32-bit words of kLanes rows so that lane r of a vector belongs to row r: words change
// places with rows in registers. Used for weights that are multiplied, or rearranged, where they
// lie.
//
// Included by kernel files only; see vec.h.
#pragma once

#include "core/simd/bytes.h"
#include "core/simd/transpose.h"

namespace spb::SPB_ISA {

// A place in each of kLanes rows, beginning with row `first_row` of some. Without kFull there may
// be fewer of them; the last one then stands for the missing ones.
template <bool kFull>
struct RowWords {
  const std::byte* first;  // the place in row 0
  int64_t stride;
  int64_t rows;
  int first_row;

  const std::byte* at(int lane) const {
    const int64_t row = first_row + lane;
    return first + (kFull || row < rows ? row : rows - 1) * stride;
  }
};

#if defined(__AVX2__)
inline __m128i load_16(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
#endif

// 16 bytes, `from` bytes behind the places, of lanes `lane`, `lane` + 4, ...
template <bool kFull>
[[gnu::always_inline]] inline Vec load_every_fourth(const RowWords<kFull>& rows, int64_t from,
                                                    int lane) {
#if defined(__AVX512F__)
  __m512i v = _mm512_castsi128_si512(load_16(rows.at(lane) + from));
  v = _mm512_inserti32x4(v, load_16(rows.at(lane + 4) + from), 1);
  v = _mm512_inserti32x4(v, load_16(rows.at(lane + 8) + from), 2);
  return (Vec)_mm512_inserti32x4(v, load_16(rows.at(lane + 12) + from), 3);
#elif defined(__AVX2__)
  const __m256i v = _mm256_castsi128_si256(load_16(rows.at(lane) + from));
  return (Vec)_mm256_inserti128_si256(v, load_16(rows.at(lane + 4) + from), 1);
#else
  return (Vec)load_int(rows.at(lane) + from);
#endif
}

// Four words of every lane: vector j holds word j. Inlined by force: called in a loop over cells,
// its registers would go through memory.
struct Words {
  VecI w[4];
};

template <bool kFull>
[[gnu::always_inline]] inline Words load_words(const RowWords<kFull>& rows, int64_t from) {
  Vec v[4];
  for (int i = 0; i < 4; ++i) v[i] = load_every_fourth(rows, from, i);
  const Vec low[2] = {exchange_low<2>(v[0], v[2]), exchange_low<2>(v[1], v[3])};
  const Vec high[2] = {exchange_high<2>(v[0], v[2]), exchange_high<2>(v[1], v[3])};
  return {{(VecI)exchange_low<1>(low[0], low[1]), (VecI)exchange_high<1>(low[0], low[1]),
           (VecI)exchange_low<1>(high[0], high[1]), (VecI)exchange_high<1>(high[0], high[1])}};
}

// One word of every lane.
template <bool kFull>
inline VecI load_word(const RowWords<kFull>& rows, int64_t from) {
#if defined(__AVX512F__)
  if constexpr (kFull) {
    const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i offset = _mm512_mullo_epi64(lane, _mm512_set1_epi64(rows.stride));
    const __m256i low = _mm512_i64gather_epi32(offset, rows.at(0) + from, 1);
    const __m256i high = _mm512_i64gather_epi32(offset, rows.at(8) + from, 1);
    return (VecI)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
#endif
  int32_t words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    __builtin_memcpy(&words[lane], rows.at(lane) + from, sizeof(int32_t));
  }
  return load_int(words);
}

// The f16 in the low half of every lane.
inline Vec low_halves(VecI words) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)words));
#elif defined(__AVX2__)
  const __m256i low = (__m256i)(words & 0xffff);
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return (Vec)_mm256_cvtph_ps(_mm256_castsi256_si128(pairs));
#else
  f16 halves[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) halves[lane].bits = static_cast<uint16_t>(words[lane]);
  return load(halves);
#endif
}

}  // namespace spb::SPB_ISA
