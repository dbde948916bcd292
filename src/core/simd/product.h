// Dense products of small f32 matrices: the inner loop of the tiled operators.
//
// Included by `*_cpu_kernels.cpp` files only; see vec.h. Every element of the result sums its
// products in the order of the steps, whatever the tile it falls into.
#pragma once

#include "core/simd/vec.h"

namespace spb::SPB_ISA {

// A strided matrix: element (i, j) is data[i * row + j * step].
struct Strided {
  const float* data;
  int64_t row;
  int64_t step;
};

// kProductRows x kProductWide registers of sums leave room for the operands.
inline constexpr int kProductRows = 6;
inline constexpr int kProductWide = kLanes == 16 ? 4 : 2;

// A register of columns, or with kPartial its first `last` lanes.
template <bool kPartial, typename T>
inline Vec load_columns(const T* p, [[maybe_unused]] int last) {
  if constexpr (kPartial) {
    return load_partial(p, last);
  } else {
    return load(p);
  }
}

template <bool kPartial>
inline void store_columns(float* p, Vec v, [[maybe_unused]] int last) {
  if constexpr (kPartial) {
    store_partial(p, v, last);
  } else {
    store(p, v);
  }
}

enum class Into { kOverwrite, kAdd };

// c[r, n] (+)= sum over s < steps of a(r, s) * b[s, n], for kRows rows and kColumns registers.
// With kPartial only `last` lanes of the last register are columns of the matrices. T is float or a
// 16-bit storage type.
template <Into kInto, int kRows, int kColumns, bool kPartial, typename T>
inline void product_tile(Strided a, const T* b, int64_t b_row, int64_t steps, float* c,
                         int64_t c_row, int last) {
  static_assert(!kPartial || kColumns == 1);
  // Set element by element: an initializer of the whole array would keep it in memory.
  Vec sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kColumns; ++n) {
      sums[r][n] =
          kInto == Into::kAdd ? load_columns<kPartial>(c + r * c_row + n * kLanes, last) : Vec{};
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    Vec column[kColumns];
    for (int n = 0; n < kColumns; ++n)
      column[n] = load_columns<kPartial>(b + s * b_row + n * kLanes, last);
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = broadcast(a.data[r * a.row + s * a.step]);
      for (int n = 0; n < kColumns; ++n) sums[r][n] = fma(factor, column[n], sums[r][n]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kColumns; ++n) {
      store_columns<kPartial>(c + r * c_row + n * kLanes, sums[r][n], last);
    }
  }
}

template <Into kInto, int kRows, typename T>
inline void product_rows(Strided a, const T* b, int64_t b_row, int64_t steps, float* c,
                         int64_t c_row, int64_t columns) {
  int64_t n = 0;
  for (; n + kProductWide * kLanes <= columns; n += kProductWide * kLanes) {
    product_tile<kInto, kRows, kProductWide, false>(a, b + n, b_row, steps, c + n, c_row, 0);
  }
  if (kProductWide > 2 && n + 2 * kLanes <= columns) {
    product_tile<kInto, kRows, 2, false>(a, b + n, b_row, steps, c + n, c_row, 0);
    n += 2 * kLanes;
  }
  if (n + kLanes <= columns) {
    product_tile<kInto, kRows, 1, false>(a, b + n, b_row, steps, c + n, c_row, 0);
    n += kLanes;
  }
  if (n < columns) {
    product_tile<kInto, kRows, 1, true>(a, b + n, b_row, steps, c + n, c_row,
                                        static_cast<int>(columns - n));
  }
}

// c[r, n] (+)= sum over s < steps of a(r, s) * b[s, n] for any number of rows and columns.
template <Into kInto, typename T>
inline void product(Strided a, const T* b, int64_t b_row, int64_t steps, float* c, int64_t c_row,
                    int64_t rows, int64_t columns) {
  int64_t r = 0;
  for (; r + kProductRows <= rows; r += kProductRows) {
    const Strided part = {a.data + r * a.row, a.row, a.step};
    product_rows<kInto, kProductRows>(part, b, b_row, steps, c + r * c_row, c_row, columns);
  }
  const Strided part = {a.data + r * a.row, a.row, a.step};
  float* out = c + r * c_row;
  switch (rows - r) {
    case 1: return product_rows<kInto, 1>(part, b, b_row, steps, out, c_row, columns);
    case 2: return product_rows<kInto, 2>(part, b, b_row, steps, out, c_row, columns);
    case 3: return product_rows<kInto, 3>(part, b, b_row, steps, out, c_row, columns);
    case 4: return product_rows<kInto, 4>(part, b, b_row, steps, out, c_row, columns);
    case 5: return product_rows<kInto, 5>(part, b, b_row, steps, out, c_row, columns);
    default: return;
  }
}

}  // namespace spb::SPB_ISA
