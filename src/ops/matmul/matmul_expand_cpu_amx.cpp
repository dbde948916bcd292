// Conversion of x and of weights to the bf16 tiles of matmul_tiles.h.
#include "core/simd/row_words.h"
#include "ops/matmul/matmul_cell_codes.h"
#include "ops/matmul/matmul_tiles.h"

namespace spb::ops::SPB_ISA {
namespace {

// Words 0..15 of a vector interleaved with words 16..31.
__m512i interleave_halves(__m512i v) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, v);
}

// 32 floats to bf16, rounded to nearest even: `low` first.
__m512i to_bf16s(Vec low, Vec high) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// What code_as_float adds to a code.
template <int kBits>
inline constexpr float kCodeBias = kBits < 8 ? 128.0f : 32768.0f;

// Byte kByte of every lane as a float plus kCodeBias: placed in the mantissa of the bias, where one
// stands on the border of a byte, which saves a conversion.
template <int kByte, int kBits>
Vec code_as_float(VecI codes) {
  constexpr int kPlace = kBits < 8 ? 2 : 1;
  constexpr int kShift = 8 * kPlace;
  const int byte = kByte;
  const __m512i to_place = _mm512_set4_epi32((12 + byte) << kShift, (8 + byte) << kShift,
                                             (4 + byte) << kShift, byte << kShift);
  const __m512i bias = (__m512i)broadcast(kCodeBias<kBits>);
  return (Vec)_mm512_mask_shuffle_epi8(bias, 0x1111111111111111ull << kPlace, (__m512i)codes,
                                       to_place);
}

template <DType kDType>
void expand_cell(const std::byte* cell, const SuperScales& super, std::byte* tile) {
  constexpr CellFormat kFormat = cell_format(kDType);
  // Exact when multiplied by the f16 scale of q8_0, 32896 having nine significant bits.
  constexpr float kOffset =
      kCodeBias<kFormat.bits> +
      (kFormat.offset_shift >= 0 ? static_cast<float>(1 << kFormat.offset_shift) : 0.0f);
  const Codes codes = load_codes<kDType>(cell, 0);
  const Scales scales = load_scales<kDType>(cell, 0, super);
  for (int j = 0; j < 8; ++j) {
    const Vec scale = kDType == DType::kQ6_K ? scales.scale[j / 4] : scales.scale[0];
    Vec base = scale * -kOffset;
    if constexpr (kFormat.minima) base += scales.minimum;
    const Vec k0 = fma(code_as_float<0, kFormat.bits>(codes.q[j]), scale, base);
    const Vec k1 = fma(code_as_float<1, kFormat.bits>(codes.q[j]), scale, base);
    const Vec k2 = fma(code_as_float<2, kFormat.bits>(codes.q[j]), scale, base);
    const Vec k3 = fma(code_as_float<3, kFormat.bits>(codes.q[j]), scale, base);
    _mm512_store_si512(tile + 128 * j, interleave_halves(to_bf16s(k0, k1)));
    _mm512_store_si512(tile + 128 * j + 64, interleave_halves(to_bf16s(k2, k3)));
  }
}

template <DType kDType>
void expand(const std::byte* group, int64_t cells, std::byte* panel) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kSuperCells = kFormat.super_cells > 0 ? kFormat.super_cells : 1;
  for (int64_t c = 0; c < cells; c += kSuperCells) {
    const SuperScales super = load_super_scales<kDType>(group, 0);
    group += kFormat.super_bytes;
    for (int i = 0; i < kSuperCells; ++i) {
      expand_cell<kDType>(group, super, panel);
      group += kFormat.cell_bytes;
      panel += kTileBytes;
    }
  }
}

// Up to 32 16-bit floats of a row as bf16; the rest of the vector is zero.
__m512i load_bf16s(DType dtype, const std::byte* p, int64_t count) {
  const __mmask32 mask = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  const __m512i raw = _mm512_maskz_loadu_epi16(mask, p);
  if (dtype == DType::kBF16) return raw;
  return to_bf16s((Vec)_mm512_cvtph_ps(_mm512_castsi512_si256(raw)),
                  (Vec)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(raw, 1)));
}

// Up to 32 floats of each of up to 16 rows as bf16; the rest is zero.
void convert_tile(const float* x, int64_t x_stride, int64_t rows, int64_t columns, Vec* tile) {
  const __mmask32 mask = columns >= 32 ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
  const auto low_mask = static_cast<__mmask16>(mask);
  const auto high_mask = static_cast<__mmask16>(mask >> 16);
  for (int64_t r = 0; r < 16; ++r) {
    tile[r] = broadcast(0.0f);
    if (r < rows) {
      const float* p = x + r * x_stride;
      tile[r] = (Vec)to_bf16s((Vec)_mm512_maskz_loadu_ps(low_mask, p),
                              (Vec)_mm512_maskz_loadu_ps(high_mask, p + 16));
    }
  }
}

void store_tile(const Vec* rows, std::byte* tile) {
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + 64 * i, (__m512i)rows[i]);
}

// 16 rows of 32 bf16.
void expand_whole_tile(const std::byte* rows, int64_t row_stride, std::byte* tile) {
  const RowWords<true> blocks{rows, row_stride, 16, 0};
  for (int quarter = 0; quarter < 4; ++quarter) {
    const Words pairs = load_words(blocks, 16 * quarter);
    for (int j = 0; j < 4; ++j) {
      _mm512_store_si512(tile + 256 * quarter + 64 * j, (__m512i)pairs.w[j]);
    }
  }
}

}  // namespace

void convert_strip(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                   std::byte* strip) {
  for (int64_t k = 0; k < columns; k += kTileColumns, strip += kTileBytes) {
    Vec tile[16];
    convert_tile(x + k, x_stride, rows, columns - k, tile);
    store_tile(tile, strip);
  }
}

void convert_panel(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                   std::byte* panel) {
  for (int64_t k = 0; k < columns; k += kTileColumns, panel += kTileBytes) {
    Vec tile[16];
    convert_tile(x + k, x_stride, rows, columns - k, tile);
    transpose(tile);  // pairs of columns travel as one word
    store_tile(tile, panel);
  }
}

void expand_cells(DType dtype, const std::byte* group, int64_t cells, std::byte* panel) {
  switch (dtype) {
    case DType::kQ8_0: return expand<DType::kQ8_0>(group, cells, panel);
    case DType::kQ4_0: return expand<DType::kQ4_0>(group, cells, panel);
    case DType::kQ4_1: return expand<DType::kQ4_1>(group, cells, panel);
    case DType::kQ5_0: return expand<DType::kQ5_0>(group, cells, panel);
    case DType::kQ5_1: return expand<DType::kQ5_1>(group, cells, panel);
    case DType::kQ4_K: return expand<DType::kQ4_K>(group, cells, panel);
    case DType::kQ5_K: return expand<DType::kQ5_K>(group, cells, panel);
    case DType::kQ6_K: return expand<DType::kQ6_K>(group, cells, panel);
    default: return;
  }
}

void expand_floats(DType dtype, const std::byte* rows, int64_t row_stride, int64_t row_count,
                   int64_t columns, std::byte* panel) {
  int64_t k = 0;
  for (; dtype == DType::kBF16 && row_count == 16 && k + kTileColumns <= columns;
       k += kTileColumns, panel += kTileBytes) {
    expand_whole_tile(rows + 2 * k, row_stride, panel);
  }
  for (; k < columns; k += kTileColumns, panel += kTileBytes) {
    // Pairs of columns travel as one word.
    Vec pairs[16];
    for (int64_t r = 0; r < 16; ++r) {
      pairs[r] = broadcast(0.0f);
      if (r < row_count) {
        pairs[r] = (Vec)load_bf16s(dtype, rows + r * row_stride + 2 * k, columns - k);
      }
    }
    transpose(pairs);
    store_tile(pairs, panel);
  }
}

}  // namespace spb::ops::SPB_ISA
