// The operands of tile products: rows of floats or codes as bf16 numbers, in the order of the
// products.
#include <immintrin.h>

#include "core/simd/codes.h"
#include "core/simd/transpose.h"
#include "core/simd/vec.h"
#include "ops/softmax_attention/softmax_attention_tiles.h"

namespace spb::SPB_ISA {
namespace {

using ops::kTileDims;
using ops::kTileKeys;
using ops::kTileQueries;
using ops::RingRows;

constexpr int kTile = 16;         // lanes, and rows of a tile register
constexpr int kPair = 2 * kTile;  // bf16 numbers in a row of a tile register

// The upper half of each float, rounded to nearest even, still as a float. Finite input.
Vec round_to_bf16(Vec v) {
  const __m512i bits = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return (Vec)(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// The upper halves as 16-bit numbers, in order.
__m256i upper_halves(Vec v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)v, 16)); }

bool all_finite(Vec v) {
  return _mm512_fpclass_ps_mask((__m512)v, 0x01 | 0x08 | 0x10 | 0x80) == 0;  // NaN, infinities
}

template <typename T>
Vec load_up_to(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  return count > 0 ? load_partial(p, static_cast<int>(count)) : Vec{};
}

}  // namespace

// Queries are the right-hand matrix: pairs of dims lie side by side, row by row of the register
// the queries of one half of the tile. Order: [dims / 32][2 halves][16 pairs][16 queries][2].
bool pack_tile_queries(const float* q, int64_t rows, int64_t head_dim, int64_t dims, uint16_t* high,
                       uint16_t* low) {
  bool finite = true;
  for (int64_t d = 0; d < dims; d += kTileDims) {
    for (int64_t first = 0; first < kTileQueries; first += kTile) {
      Vec high_pairs[kTile];
      Vec low_pairs[kTile];
      for (int64_t i = 0; i < kTile; ++i) {
        __m256i halves[4] = {};
        for (int64_t part = 0; part < 2 && first + i < rows; ++part) {
          const int64_t at = d + part * kTile;
          const Vec x = load_up_to(q + (first + i) * head_dim + at, head_dim - at);
          finite = finite && all_finite(x);
          const Vec upper = round_to_bf16(x);
          halves[part] = upper_halves(upper);
          halves[2 + part] = upper_halves(round_to_bf16(x - upper));
        }
        high_pairs[i] = (Vec)(_mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1));
        low_pairs[i] = (Vec)(_mm512_inserti64x4(_mm512_castsi256_si512(halves[2]), halves[3], 1));
      }
      transpose(high_pairs);
      transpose(low_pairs);
      for (int i = 0; i < kTile; ++i) {
        _mm512_storeu_si512(high, (__m512i)high_pairs[i]);
        _mm512_storeu_si512(low, (__m512i)low_pairs[i]);
        high += kPair;
        low += kPair;
      }
    }
  }
  return finite;
}

namespace {

template <typename T>
const T* ring_row(const RingRows& rows, int64_t position) {
  return static_cast<const T*>(rows.data) + position % rows.capacity * rows.head_dim;
}

template <typename T>
bool pack_keys(const RingRows& rows, int64_t position, int64_t count, int64_t dims, uint16_t* high,
               uint16_t* low) {
  bool finite = true;
  for (int64_t key = 0; key < kTileKeys; ++key) {
    const T* row = ring_row<T>(rows, position + key);
    for (int64_t d = 0; d < dims; d += kLanes) {
      const Vec x = key < count ? load_up_to(row + d, rows.head_dim - d) : Vec{};
      finite = finite && all_finite(x);
      const Vec upper = round_to_bf16(x);
      const int64_t at = key * dims + d;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + at), upper_halves(upper));
      if (low != nullptr) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + at), upper_halves(x - upper));
      }
    }
  }
  return finite;
}

// Puts bf16 numbers into the lower (part 0) or upper half of each lane.
__m512i beside(__m512i pair, Vec upper, int64_t part) {
  const __m512i bits = (__m512i)upper;
  return _mm512_or_si512(pair, part == 0 ? _mm512_srli_epi32(bits, 16) : bits);
}

// Values are the left-hand matrix, by dimension: [dims][kTileKeys].
template <typename T>
bool pack_values(const RingRows& rows, int64_t position, int64_t count, int64_t dims,
                 uint16_t* high, uint16_t* low) {
  bool finite = true;
  for (int64_t d = 0; d < dims; d += kTile) {
    Vec high_pairs[kTile];
    Vec low_pairs[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      __m512i high_pair = _mm512_setzero_si512();
      __m512i low_pair = _mm512_setzero_si512();
      for (int64_t part = 0; part < 2 && 2 * i + part < count; ++part) {
        const T* row = ring_row<T>(rows, position + 2 * i + part);
        const Vec x = load_up_to(row + d, rows.head_dim - d);
        finite = finite && all_finite(x);
        const Vec upper = round_to_bf16(x);
        high_pair = beside(high_pair, upper, part);
        low_pair = beside(low_pair, x - upper, part);
      }
      high_pairs[i] = (Vec)high_pair;
      low_pairs[i] = (Vec)low_pair;
    }
    transpose(high_pairs);
    transpose(low_pairs);
    for (int i = 0; i < kTile; ++i) {
      const int64_t at = (d + i) * kTileKeys;
      _mm512_storeu_si512(high + at, (__m512i)high_pairs[i]);
      if (low != nullptr) _mm512_storeu_si512(low + at, (__m512i)low_pairs[i]);
    }
  }
  return finite;
}

}  // namespace

const ops::PackTile kPackTileKeys[4] = {nullptr, pack_keys<f16>, pack_keys<bf16>, pack_keys<Code>};
const ops::PackTile kPackTileValues[4] = {nullptr, pack_values<f16>, pack_values<bf16>,
                                          pack_values<Code>};

}  // namespace spb::SPB_ISA
