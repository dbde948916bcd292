// Products of quantised x with cells of block formats (layout in matmul_cells.h).
#include "ops/matmul/matmul_cell_codes.h"

namespace spb::ops::SPB_ISA {
namespace {

// Tokens that share one unpacking of the codes; limited by the number of registers.
constexpr int kMaxTokens = kLanes == 16 ? 8 : 4;

template <DType kDType>
Vec add_cell(Vec sum, const Codes& codes, const Scales& scales, const XCell& x) {
  constexpr CellFormat kFormat = cell_format(kDType);
  VecI part[2] = {};
  for (int h = 0; h < 2; ++h) {
    if constexpr (kFormat.offset_shift >= 0) {
      part[h] = broadcast_quad(&x.negated_sum[h]) << kFormat.offset_shift;
    }
    for (int j = 0; j < 4; ++j) {
      part[h] = dot_bytes<kFormat.bits>(part[h], codes.q[4 * h + j],
                                        broadcast_quad(x.q + 16 * h + 4 * j));
    }
  }
  const Vec d = broadcast_float(&x.d);
  if constexpr (kDType == DType::kQ6_K) {
    sum = fma(to_floats(part[0]) * d, scales.scale[0], sum);
    return fma(to_floats(part[1]) * d, scales.scale[1], sum);
  }
  sum = fma(to_floats(part[0] + part[1]) * d, scales.scale[0], sum);
  if constexpr (kFormat.minima) sum = fma(scales.minimum, broadcast_float(&x.d_sum), sum);
  return sum;
}

// Results of rows first_row, first_row + 1, ...
void put(const CellArgs& a, int64_t token, int64_t first_row, Vec value) {
  const int64_t left = a.rows - first_row;
  if (left <= 0) return;
  float* y = a.out.y + token * a.out.stride + first_row;
  if (left >= kStep) {
    if (a.out.bias != nullptr) value += load(a.out.bias + first_row);
    store(y, a.out.accumulate ? load(y) + value : value);
    return;
  }
  const int count = static_cast<int>(left);
  if (a.out.bias != nullptr) value += load_partial(a.out.bias + first_row, count);
  if (a.out.accumulate) value += load_partial(y, count);
  store_partial(y, value, count);
}

// How far ahead of the arithmetic the weights are asked for: a few hundred cycles of work.
constexpr int kPrefetchBytes = 2048;

template <DType kDType, int kTokens>
void dot_tokens(const CellArgs& a, int64_t group, int64_t token, int first_row) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kSuperCells = kFormat.super_cells > 0 ? kFormat.super_cells : 1;
  const XCell* x = a.x + token * a.cells;
  const std::byte* cell = a.groups + group * a.group_bytes;
  Vec sums[kTokens] = {};
  for (int64_t c = 0; c < a.cells; c += kSuperCells) {
    const SuperScales super = load_super_scales<kDType>(cell, first_row);
    cell += kFormat.super_bytes;
    for (int i = 0; i < kSuperCells; ++i) {
      for (int line = 0; line < kFormat.cell_bytes; line += 64) {
        __builtin_prefetch(cell + kPrefetchBytes + line);
      }
      const Codes codes = load_codes<kDType>(cell, first_row);
      const Scales scales = load_scales<kDType>(cell, first_row, super);
      for (int t = 0; t < kTokens; ++t) {
        sums[t] = add_cell<kDType>(sums[t], codes, scales, x[t * a.cells + c + i]);
      }
      cell += kFormat.cell_bytes;
    }
  }
  for (int t = 0; t < kTokens; ++t) put(a, token + t, group * kGroupRows + first_row, sums[t]);
}

template <DType kDType>
void dot_rows(const CellArgs& a, int64_t group, int first_row) {
  int64_t token = 0;
  for (; token + kMaxTokens <= a.tokens; token += kMaxTokens) {
    dot_tokens<kDType, kMaxTokens>(a, group, token, first_row);
  }
  for (; token + 2 <= a.tokens; token += 2) dot_tokens<kDType, 2>(a, group, token, first_row);
  if (token < a.tokens) dot_tokens<kDType, 1>(a, group, token, first_row);
}

template <DType kDType>
void dot(const CellArgs& a) {
  for (int64_t group = 0; group * kGroupRows < a.rows; ++group) {
    for (int first_row = 0; first_row < kGroupRows; first_row += kStep) {
      dot_rows<kDType>(a, group, first_row);
    }
  }
}

void quantize(const float* x, int64_t columns, XCell* cells) {
  // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits.
  const Vec shifter = broadcast(12582912.0f);
  for (int64_t k = 0; k < columns; k += kCellColumns, ++cells) {
    // As integers, magnitudes are ordered like the floats, infinity and NaN above all others.
    VecI largest = {};
    for (int i = 0; i < kCellColumns; i += kLanes) {
      const VecI magnitude = load_int(x + k + i) & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float d = __builtin_bit_cast(float, reduce_max(largest)) / 127.0f;
    // Below 1e-37 the inverse would overflow; such elements count as zero.
    const float inverse = d > 1e-37f ? 1.0f / d : 0.0f;
    int32_t total = 0;
    for (int h = 0; h < 2; ++h) {
      VecI sum = {};
      for (int i = 16 * h; i < 16 * h + 16; i += kLanes) {
        const VecI rounded = (VecI)fma(load(x + k + i), broadcast(inverse), shifter);
        // The low byte alone, so that the bits of a NaN cannot overflow the sum.
        const VecI q = (VecI)((VecU)rounded << 24) >> 24;
        store_low_bytes(cells->q + i, q);
        sum += q;
      }
      const int32_t half = reduce_add(sum);
      cells->negated_sum[h] = -half;
      total += half;
    }
    cells->d = d;
    cells->d_sum = cells->d * static_cast<float>(total);
  }
}

}  // namespace

const CellKernels kCellKernels = {quantize,          dot<DType::kQ8_0>, dot<DType::kQ4_0>,
                                  dot<DType::kQ4_1>, dot<DType::kQ5_0>, dot<DType::kQ5_1>,
                                  dot<DType::kQ4_K>, dot<DType::kQ5_K>, dot<DType::kQ6_K>};

}  // namespace spb::ops::SPB_ISA
