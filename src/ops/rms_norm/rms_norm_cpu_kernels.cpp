#include "core/simd/vec.h"
#include "ops/rms_norm/rms_norm_kernels.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;
namespace {

// Longer sums continue in double, so the rounding error does not grow with the width of the row.
constexpr int64_t kBlock = 2048;

// Adds x to h where there is a residual; returns the sum of squares of h.
template <bool kResidual>
float add_and_square(const float* x, float* h, int64_t columns) {
  constexpr int kUnroll = 4;
  Vec sums[kUnroll] = {};
  int64_t c = 0;
  for (; c + kUnroll * kLanes <= columns; c += kUnroll * kLanes) {
    for (int u = 0; u < kUnroll; ++u) {
      Vec v = load(x + c + u * kLanes);
      if constexpr (kResidual) {
        v += load(h + c + u * kLanes);
        store(h + c + u * kLanes, v);
      }
      sums[u] = fma(v, v, sums[u]);
    }
  }
  for (; c < columns; c += kLanes) {
    const int count = columns - c < kLanes ? static_cast<int>(columns - c) : kLanes;
    Vec v = count == kLanes ? load(x + c) : load_partial(x + c, count);
    if constexpr (kResidual) {
      v += count == kLanes ? load(h + c) : load_partial(h + c, count);
      if (count == kLanes) {
        store(h + c, v);
      } else {
        store_partial(h + c, v, count);
      }
    }
    sums[0] = fma(v, v, sums[0]);
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <bool kResidual>
double sum_of_squares(const float* x, float* h, int64_t columns) {
  double sum = 0;
  for (int64_t c = 0; c < columns; c += kBlock) {
    const int64_t count = columns - c < kBlock ? columns - c : kBlock;
    sum += static_cast<double>(add_and_square<kResidual>(x + c, kResidual ? h + c : h, count));
  }
  return sum;
}

template <bool kAccumulate>
void scale_row(const float* h, const float* weight, float scale, float* y, int64_t columns) {
  const Vec factor = broadcast(scale);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Vec v = load(h + c) * factor * load(weight + c);
    if constexpr (kAccumulate) v += load(y + c);
    store(y + c, v);
  }
  if (c < columns) {
    const int count = static_cast<int>(columns - c);
    Vec v = load_partial(h + c, count) * factor * load_partial(weight + c, count);
    if constexpr (kAccumulate) v += load_partial(y + c, count);
    store_partial(y + c, v, count);
  }
}

}  // namespace

void rms_norm_rows(const RmsNormRows& rows, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float* h = rows.x + i * rows.x_stride;
    double sum;
    if (rows.residual != nullptr) {
      float* residual = rows.residual + i * rows.residual_stride;
      sum = sum_of_squares<true>(h, residual, rows.columns);
      h = residual;
    } else {
      sum = sum_of_squares<false>(h, nullptr, rows.columns);
    }
    const double mean = sum / static_cast<double>(rows.columns) + static_cast<double>(rows.eps);
    const auto scale = static_cast<float>(1.0 / __builtin_sqrt(mean));
    const auto write = rows.accumulate ? scale_row<true> : scale_row<false>;
    write(h, rows.weight, scale, rows.y + i * rows.y_stride, rows.columns);
  }
}

}  // namespace spb::ops::SPB_ISA
