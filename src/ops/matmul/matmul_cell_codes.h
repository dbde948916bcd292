// Reads the codes and scales of a cell (layout in matmul_cells.h) into vectors. Included only by
// kernel files; everything is internal to the instruction set they are compiled for.
#pragma once

#include "core/simd/bytes.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;

// Rows handled together: a cell takes one pass with AVX-512, two with AVX2.
inline constexpr int kStep = kLanes;

inline const f16* halves(const std::byte* p) { return reinterpret_cast<const f16*>(p); }

// The codes of kStep rows of a cell: q[j] holds columns 4 j .. 4 j + 3.
struct Codes {
  VecI q[8];
};

// From four vectors of nibbles: the low ones are columns 0 .. 15.
inline Codes split_nibbles(const VecI* both) {
  Codes c;
  for (int j = 0; j < 4; ++j) {
    c.q[j] = both[j] & 0x0f0f0f0f;
    c.q[j + 4] = (both[j] >> 4) & 0x0f0f0f0f;
  }
  return c;
}

inline void add_fifth_bits(Codes& c, VecI high) {
  for (int j = 0; j < 8; ++j) {
    c.q[j] |= (j < 4 ? high << (4 - j) : high >> (j - 4)) & 0x10101010;
  }
}

template <DType kDType>
inline Codes load_codes(const std::byte* cell, int first_row) {
  constexpr int kBits = cell_format(kDType).bits;
  const std::byte* p = cell + 4 * first_row;
  if constexpr (kBits == 8) {
    Codes c;
    for (int j = 0; j < 8; ++j) c.q[j] = load_int(p + 64 * j);
    return c;
  }
  const VecI both[] = {load_int(p), load_int(p + 64), load_int(p + 128), load_int(p + 192)};
  Codes c = split_nibbles(both);
  if constexpr (kBits == 5) add_fifth_bits(c, load_int(p + 256));
  if constexpr (kBits == 6) {
    for (int h = 0; h < 2; ++h) {
      const VecI high = load_int(p + 256 + 64 * h);
      for (int j = 0; j < 4; ++j) {
        c.q[4 * h + j] |= (j < 2 ? high << (4 - 2 * j) : high >> (2 * j - 4)) & 0x30303030;
      }
    }
  }
  return c;
}

// The factors of a cell: value = scale[h] * (code - offset) + minimum, h = column / 16.
struct Scales {
  Vec scale[2];
  Vec minimum;
};

// The f16 scales in front of eight cells of a K-block.
struct SuperScales {
  Vec d = broadcast(0.0f);
  Vec dmin = broadcast(0.0f);
};

template <DType kDType>
inline SuperScales load_super_scales(const std::byte* p, int first_row) {
  constexpr CellFormat kFormat = cell_format(kDType);
  SuperScales super;
  if constexpr (kFormat.super_cells > 0) super.d = load(halves(p) + first_row);
  if constexpr (kFormat.super_cells > 0 && kFormat.minima) {
    super.dmin = load(halves(p + 32) + first_row);
  }
  return super;
}

template <DType kDType>
inline Scales load_scales(const std::byte* cell, int first_row, const SuperScales& super) {
  constexpr CellFormat kFormat = cell_format(kDType);
  Scales s;
  if constexpr (kDType == DType::kQ6_K) {
    const auto* scales = reinterpret_cast<const int8_t*>(cell + 384) + first_row;
    s.scale[0] = super.d * to_floats(load_widened(scales));
    s.scale[1] = super.d * to_floats(load_widened(scales + 16));
  } else if constexpr (kFormat.super_cells > 0) {
    const auto* scales =
        reinterpret_cast<const uint8_t*>(cell + kFormat.cell_bytes - 32) + first_row;
    s.scale[0] = super.d * to_floats(load_widened(scales));
    s.minimum = -(super.dmin * to_floats(load_widened(scales + 16)));
  } else {
    const f16* scales = halves(cell + kFormat.cell_bytes - (kFormat.minima ? 64 : 32)) + first_row;
    s.scale[0] = load(scales);
    if constexpr (kFormat.minima) s.minimum = load(scales + 16);
  }
  return s;
}

}  // namespace spb::ops::SPB_ISA
