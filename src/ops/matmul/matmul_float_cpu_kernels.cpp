// Row dot products for a few rows of x: each weight is read once from memory, straight from the
// layout of the file. Four tokens by two rows keep all sums in registers.
#include "core/simd/vec.h"
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
  float& y = out.y[token * out.stride + row];
  if (out.bias != nullptr) value += out.bias[row];
  y = out.accumulate ? y + value : value;
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

}  // namespace

const FloatKernels kFloatKernels = {dot<float>, dot<f16>, dot<bf16>};

}  // namespace spb::ops::SPB_ISA
