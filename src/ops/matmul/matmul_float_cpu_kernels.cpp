// Float weights. For a few rows of x, row dot products: each weight is read once, straight from the
// layout of the file. For many, products with interleaved panels: a block of tokens by 16 rows of
// weights keeps all its sums in registers.
#include "core/simd/bytes.h"
#include "core/simd/transpose.h"
#include "ops/matmul/matmul_float_cpu.h"

namespace spb::ops::SPB_ISA {
namespace {
using namespace spb::SPB_ISA;  // the vector type of this instruction set

// Two partial sums per result hide the latency of the adder; they are part of the definition of
// the result, so every tile shape must use exactly these.
struct Sums {
  Vec even = broadcast(0.0f);
  Vec odd = broadcast(0.0f);
};

void put(const RowOutput& out, int64_t token, int64_t row, float value) {
  if (out.bias != nullptr) value += out.bias[row];
  out.y[token * out.stride + row] = value;
}

template <int kTokens, int kRows, typename T>
void dot_tile(const FloatDotArgs<T>& a, int64_t token, int64_t row) {
  const float* x = a.x + token * a.x_stride;
  const T* w = a.weights + row * a.weight_stride;
  Sums sums[kTokens][kRows];
  int64_t k = 0;
  for (; k + 2 * kLanes <= a.columns; k += 2 * kLanes) {
    for (int r = 0; r < kRows; ++r) {
      const Vec even = load(w + r * a.weight_stride + k);
      const Vec odd = load(w + r * a.weight_stride + k + kLanes);
      for (int t = 0; t < kTokens; ++t) {
        sums[t][r].even = fma(even, load(x + t * a.x_stride + k), sums[t][r].even);
        sums[t][r].odd = fma(odd, load(x + t * a.x_stride + k + kLanes), sums[t][r].odd);
      }
    }
  }
  for (; k < a.columns; k += kLanes) {
    const int left = static_cast<int>(a.columns - k < kLanes ? a.columns - k : kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec even = load_partial(w + r * a.weight_stride + k, left);
      for (int t = 0; t < kTokens; ++t) {
        sums[t][r].even = fma(even, load_partial(x + t * a.x_stride + k, left), sums[t][r].even);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      put(a.out, token + t, row + r, reduce_add(sums[t][r].even + sums[t][r].odd));
    }
  }
}

template <int kTokens, typename T>
void dot_rows(const FloatDotArgs<T>& a, int64_t token) {
  int64_t row = 0;
  for (; row + 2 <= a.rows; row += 2) dot_tile<kTokens, 2>(a, token, row);
  if (row < a.rows) dot_tile<kTokens, 1>(a, token, row);
}

template <typename T>
void dot(const FloatDotArgs<T>& a) {
  int64_t token = 0;
  for (; token + 4 <= a.tokens; token += 4) dot_rows<4>(a, token);
  for (; token < a.tokens; ++token) dot_rows<1>(a, token);
}

constexpr int kPanelRows = 16;
constexpr int kPanelVectors = kPanelRows / kLanes;
// Tokens whose sums fit the registers beside the weights: 2 x 12 of 32, 2 x 6 of 16 vectors.
constexpr int kPanels = kLanes == 16 ? 2 : 1;
constexpr int kTokenBlock = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;
constexpr int kVectors = kPanels * kPanelVectors;

// Columns k .. k + kLanes of kLanes rows from first_row on.
template <typename T>
void interleave_square(const T* rows, int64_t row_stride, int64_t row_count, int64_t columns,
                       int64_t k, int first_row, float* panel) {
  const int count = static_cast<int>(columns - k < kLanes ? columns - k : kLanes);
  Vec square[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const T* p = rows + (first_row + i) * row_stride + k;
    if (first_row + i >= row_count) {
      square[i] = broadcast(0.0f);
    } else {
      square[i] = count == kLanes ? load(p) : load_partial(p, count);
    }
  }
  transpose(square);
  for (int i = 0; i < count; ++i) store(panel + (k + i) * kPanelRows + first_row, square[i]);
}

template <typename T>
void interleave_rows(const T* rows, int64_t row_stride, int64_t row_count, int64_t columns,
                     float* panel) {
  for (int64_t k = 0; k < columns; k += kLanes) {
    for (int first_row = 0; first_row < kPanelRows; first_row += kLanes) {
      interleave_square(rows, row_stride, row_count, columns, k, first_row, panel);
    }
  }
}

void put_vector(const FloatPanelArgs& a, int64_t token, int64_t row, Vec value) {
  const int64_t left = a.rows - row;
  if (left <= 0) return;
  const int count = static_cast<int>(left < kLanes ? left : kLanes);
  float* y = a.out.y + token * a.out.stride + row;
  if (a.out.bias != nullptr) value += load_partial(a.out.bias + row, count);
  if (count == kLanes) return store(y, a.out.accumulate ? load(y) + value : value);
  if (a.out.accumulate) value += load_partial(y, count);
  store_partial(y, value, count);
}

// A last block of panels may hold one less than kPanels: its sums are computed from the panel that
// is there and dropped.
template <int kTokens>
void panel_block(const FloatPanelArgs& a, int64_t token, int64_t row) {
  const float* x = a.x + token * a.x_stride;
  const float* panel[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const int64_t exists = row + p * kPanelRows < a.rows ? p : 0;
    panel[p] = a.panels + (row / kPanelRows + exists) * a.panel_floats;
  }
  Vec sums[kTokens][kVectors] = {};
  for (int64_t k = 0; k < a.columns; ++k) {
    Vec w[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      w[v] = load(panel[v / kPanelVectors] + k * kPanelRows + v % kPanelVectors * kLanes);
    }
    for (int t = 0; t < kTokens; ++t) {
      const Vec one = broadcast_float(x + t * a.x_stride + k);
      for (int v = 0; v < kVectors; ++v) sums[t][v] = fma(one, w[v], sums[t][v]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) put_vector(a, token + t, row + v * kLanes, sums[t][v]);
  }
}

void multiply_panels(const FloatPanelArgs& a) {
  int64_t token = 0;
  for (; token + kTokenBlock <= a.tokens; token += kTokenBlock) {
    for (int64_t row = 0; row < a.rows; row += kPanels * kPanelRows) {
      panel_block<kTokenBlock>(a, token, row);
    }
  }
  for (; token < a.tokens; ++token) {
    for (int64_t row = 0; row < a.rows; row += kPanels * kPanelRows) panel_block<1>(a, token, row);
  }
}

}  // namespace

const FloatKernels kFloatKernels = {dot<float>,
                                    dot<f16>,
                                    dot<bf16>,
                                    interleave_rows<float>,
                                    interleave_rows<f16>,
                                    interleave_rows<bf16>,
                                    multiply_panels};

}  // namespace spb::ops::SPB_ISA
