// Products of quantised x with cells of block formats (layout in matmul_cells.h).
#include "ops/matmul/matmul_block_rows.h"
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
    store(y, value);
    return;
  }
  const int count = static_cast<int>(left);
  if (a.out.bias != nullptr) value += load_partial(a.out.bias + first_row, count);
  store_partial(y, value, count);
}

// How far ahead of the arithmetic the weights are asked for: a few hundred cycles of work.
constexpr int kPrefetchBytes = 2048;

// The weights of kStep rows, cell by cell, from a group of cells.
template <DType kDType>
class PackedWeights {
 public:
  PackedWeights(const CellArgs& a, int64_t group, int first_row)
      : cell_(a.groups + group * a.group_bytes), first_row_(first_row) {}

  // In front of every super_cells cells.
  void start_block() {
    super_ = load_super_scales<kDType>(cell_, first_row_);
    cell_ += kFormat.super_bytes;
  }
  void prefetch() const {
    for (int line = 0; line < kFormat.cell_bytes; line += 64) {
      __builtin_prefetch(cell_ + kPrefetchBytes + line);
    }
  }
  Codes codes() const { return load_codes<kDType>(cell_, first_row_); }
  Scales scales() const { return load_scales<kDType>(cell_, first_row_, super_); }
  void next_cell() { cell_ += kFormat.cell_bytes; }

 private:
  static constexpr CellFormat kFormat = cell_format(kDType);
  const std::byte* cell_;
  int first_row_;
  SuperScales super_;
};

// The same from rows of blocks of 32 columns.
template <DType kDType>
class RowWeights {
 public:
  RowWeights(const CellArgs& a, int64_t group, int first_row)
      : group_(a.groups + group * a.group_bytes),
        blocks_{group_, a.group_bytes / kGroupRows, kGroupRows, first_row} {}

  void start_block() {}
  void prefetch() const {
    prefetch_next_group(group_, blocks_.stride, (blocks_.first - group_) / Header::kBytes,
                        Header::kBytes);
  }
  Codes codes() const {
    if constexpr (cell_format(kDType).bits == 8) {
      constexpr auto kOffset = static_cast<int32_t>(0x80808080u);
      Codes c;
      for (int h = 0; h < 2; ++h) {
        const Words words = load_words(blocks_, Header::kCodes + 16 * h);
        for (int j = 0; j < 4; ++j) c.q[4 * h + j] = words.w[j] ^ kOffset;
      }
      return c;
    } else {
      Codes c = split_nibbles(load_words(blocks_, Header::kCodes).w);
      if constexpr (cell_format(kDType).bits == 5) {
        add_fifth_bits(c, spread_fifth_bits(load_word(blocks_, Header::kHigh)));
      }
      return c;
    }
  }
  Scales scales() const {
    Scales s;
    const VecI header = load_word(blocks_, 0);  // d, and m or codes
    s.scale[0] = low_halves(header);
    if constexpr (cell_format(kDType).minima) s.minimum = low_halves((header >> 16) & 0xffff);
    return s;
  }
  void next_cell() { blocks_.first += Header::kBytes; }

 private:
  using Header = BlockHeader<kDType>;
  const std::byte* group_;
  RowWords<true> blocks_;
};

template <DType kDType, int kTokens, typename Weights>
void dot_tokens(const CellArgs& a, Weights weights, int64_t token, int64_t row) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kSuperCells = kFormat.super_cells > 0 ? kFormat.super_cells : 1;
  const XCell* x = a.x + token * a.cells;
  Vec sums[kTokens] = {};
  for (int64_t c = 0; c < a.cells; c += kSuperCells) {
    weights.start_block();
    for (int i = 0; i < kSuperCells; ++i) {
      weights.prefetch();
      const Codes codes = weights.codes();
      const Scales scales = weights.scales();
      for (int t = 0; t < kTokens; ++t) {
        sums[t] = add_cell<kDType>(sums[t], codes, scales, x[t * a.cells + c + i]);
      }
      weights.next_cell();
    }
  }
  for (int t = 0; t < kTokens; ++t) put(a, token + t, row, sums[t]);
}

template <DType kDType, typename Weights>
void dot_rows(const CellArgs& a, const Weights& weights, int64_t row) {
  int64_t token = 0;
  for (; token + kMaxTokens <= a.tokens; token += kMaxTokens) {
    dot_tokens<kDType, kMaxTokens>(a, weights, token, row);
  }
  for (; token + 2 <= a.tokens; token += 2) dot_tokens<kDType, 2>(a, weights, token, row);
  if (token < a.tokens) dot_tokens<kDType, 1>(a, weights, token, row);
}

template <DType kDType, typename Weights>
void dot_all(const CellArgs& a) {
  for (int64_t group = 0; group * kGroupRows < a.rows; ++group) {
    for (int first_row = 0; first_row < kGroupRows; first_row += kStep) {
      dot_rows<kDType>(a, Weights(a, group, first_row), group * kGroupRows + first_row);
    }
  }
}

template <DType kDType>
void dot(const CellArgs& a) {
  dot_all<kDType, PackedWeights<kDType>>(a);
}

template <DType kDType>
void dot_in_rows(const CellArgs& a) {
  dot_all<kDType, RowWeights<kDType>>(a);
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

const CellKernels kCellKernels = {quantize,
                                  dot<DType::kQ8_0>,
                                  dot<DType::kQ4_0>,
                                  dot<DType::kQ4_1>,
                                  dot<DType::kQ5_0>,
                                  dot<DType::kQ5_1>,
                                  dot<DType::kQ4_K>,
                                  dot<DType::kQ5_K>,
                                  dot<DType::kQ6_K>,
                                  dot_in_rows<DType::kQ8_0>,
                                  dot_in_rows<DType::kQ4_0>,
                                  dot_in_rows<DType::kQ4_1>,
                                  dot_in_rows<DType::kQ5_0>,
                                  dot_in_rows<DType::kQ5_1>};

}  // namespace spb::ops::SPB_ISA
