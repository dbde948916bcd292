// Reads the blocks of several rows, as they lie in a file, into the order of a cell
// (matmul_cells.h): the four bytes that a dot product takes together are one 32-bit word, and words
// of kLanes rows change places with the columns in registers. Included only by kernel files;
// everything is internal to the instruction set they are compiled for.
#pragma once

#include "core/simd/bytes.h"
#include "core/simd/transpose.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;

// A block in each of kLanes rows of a group. Without kFull the group may have fewer than 16 rows;
// the last one then stands for the missing ones.
template <bool kFull>
struct BlockRows {
  const std::byte* first;  // the block in the first row of the group
  int64_t stride;
  int64_t rows;  // of the group
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

// 16 bytes, `from` bytes into their blocks, of lanes `lane`, `lane` + 4, ...
template <bool kFull>
[[gnu::always_inline]] inline Vec load_every_fourth(const BlockRows<kFull>& blocks, int64_t from,
                                                    int lane) {
#if defined(__AVX512F__)
  __m512i v = _mm512_castsi128_si512(load_16(blocks.at(lane) + from));
  v = _mm512_inserti32x4(v, load_16(blocks.at(lane + 4) + from), 1);
  v = _mm512_inserti32x4(v, load_16(blocks.at(lane + 8) + from), 2);
  return (Vec)_mm512_inserti32x4(v, load_16(blocks.at(lane + 12) + from), 3);
#elif defined(__AVX2__)
  const __m256i v = _mm256_castsi128_si256(load_16(blocks.at(lane) + from));
  return (Vec)_mm256_inserti128_si256(v, load_16(blocks.at(lane + 4) + from), 1);
#else
  return (Vec)load_int(blocks.at(lane) + from);
#endif
}

// Four words of every lane: vector j holds word j. Inlined by force: called in a loop over cells,
// its registers would go through memory.
struct Words {
  VecI w[4];
};

template <bool kFull>
[[gnu::always_inline]] inline Words load_words(const BlockRows<kFull>& blocks, int64_t from) {
  Vec v[4];
  for (int i = 0; i < 4; ++i) v[i] = load_every_fourth(blocks, from, i);
  const Vec low[2] = {exchange_low<2>(v[0], v[2]), exchange_low<2>(v[1], v[3])};
  const Vec high[2] = {exchange_high<2>(v[0], v[2]), exchange_high<2>(v[1], v[3])};
  return {{(VecI)exchange_low<1>(low[0], low[1]), (VecI)exchange_high<1>(low[0], low[1]),
           (VecI)exchange_low<1>(high[0], high[1]), (VecI)exchange_high<1>(high[0], high[1])}};
}

// One word of every lane.
template <bool kFull>
inline VecI load_word(const BlockRows<kFull>& blocks, int64_t from) {
#if defined(__AVX512F__)
  if constexpr (kFull) {
    const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i offset = _mm512_mullo_epi64(lane, _mm512_set1_epi64(blocks.stride));
    const __m256i low = _mm512_i64gather_epi32(offset, blocks.at(0) + from, 1);
    const __m256i high = _mm512_i64gather_epi32(offset, blocks.at(8) + from, 1);
    return (VecI)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
#endif
  int32_t words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    __builtin_memcpy(&words[lane], blocks.at(lane) + from, sizeof(int32_t));
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

// Bit 4 j + b of each lane to bit j of its byte b.
inline VecI spread_fifth_bits(VecI bits) {
  VecI result = {};
  for (int j = 0; j < 8; ++j) {
    const VecI four = (bits >> (4 * j)) & 15;
    result |= ((four | four << 7 | four << 14 | four << 21) & 0x01010101) << j;
  }
  return result;
}

// How blocks of 32 columns begin.
template <DType kDType>
struct BlockHeader {
  static constexpr CellFormat kFormat = cell_format(kDType);
  static constexpr int64_t kHigh = kFormat.minima ? 4 : 2;  // after d, or d and m
  static constexpr int64_t kCodes = kHigh + (kFormat.bits == 5 ? 4 : 0);
  static constexpr int64_t kBytes = kCodes + (kFormat.bits == 8 ? 32 : 16);
};

// Asks for the rows of the group behind this one, which lie together, a block of every row at a
// time.
inline void prefetch_next_group(const std::byte* group, int64_t stride, int64_t block,
                                int64_t block_bytes) {
  const std::byte* p = group + kGroupRows * (stride + block * block_bytes);
  for (int64_t i = 0; i < kGroupRows * block_bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

}  // namespace spb::ops::SPB_ISA
