// What the tests and benches of operators share: random and poisoned tensors, instruction-set
// levels, comparison. Not part of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/rng.h"

namespace spb::test {

inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// An f32 matrix whose rows lie `gap` elements apart. Everything starts as NaN, so what an operator
// forgets to write, or writes into a gap, is seen.
class StridedMatrix {
 public:
  StridedMatrix(int64_t rows, int64_t columns, int64_t gap = 0)
      : storage_(DType::kF32, Shape{rows, columns + gap}),
        view_(storage_.view().data(), DType::kF32, Shape{rows, columns},
              (columns + gap) * static_cast<int64_t>(sizeof(float))) {
    std::fill_n(storage_.as<float>(), rows * (columns + gap), kPoison);
  }

  TensorView view() const { return view_; }
  float* row(int64_t i) const { return view_.row_as<float>(i); }
  float at(int64_t i, int64_t c) const { return row(i)[c]; }

  StridedMatrix& fill_normal(Rng& rng, float scale = 1.0f) {
    for (int64_t i = 0; i < view_.shape()[0]; ++i) {
      for (int64_t c = 0; c < view_.shape()[1]; ++c) row(i)[c] = scale * rng.normal();
    }
    return *this;
  }

  StridedMatrix clone() const {
    const int64_t gap =
        view_.row_stride_bytes() / static_cast<int64_t>(sizeof(float)) - view_.shape()[1];
    StridedMatrix copy(view_.shape()[0], view_.shape()[1], gap);
    std::memcpy(copy.storage_.view().data(), storage_.view().data(),
                static_cast<size_t>(storage_.bytes()));
    return copy;
  }

  bool gaps_untouched() const {
    const int64_t stride = view_.row_stride_bytes() / static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < view_.shape()[0]; ++i) {
      for (int64_t c = view_.shape()[1]; c < stride; ++c) {
        if (!std::isnan(row(i)[c])) return false;
      }
    }
    return true;
  }

 private:
  Tensor storage_;
  TensorView view_;
};

// The same bits, NaN included.
inline bool same_bits(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  for (int64_t i = 0; i < a.shape().rows(); ++i) {
    if (std::memcmp(a.row(i), b.row(i), static_cast<size_t>(a.row_bytes_used())) != 0) return false;
  }
  return true;
}

// max |a - b| over row i divided by max |b|; infinity where a is not finite but b is.
inline double row_error(const ConstTensorView& a, const ConstTensorView& b, int64_t i) {
  const float* x = a.row_as<float>(i);
  const float* y = b.row_as<float>(i);
  double largest = 1e-30;
  double error = 0;
  for (int64_t c = 0; c < a.shape().last(); ++c) {
    if (std::isfinite(y[c]) && !std::isfinite(x[c])) return HUGE_VAL;
    largest = std::max(largest, std::fabs(static_cast<double>(y[c])));
    error = std::max(error, std::fabs(static_cast<double>(x[c]) - y[c]));
  }
  return error / largest;
}

inline double largest_row_error(const ConstTensorView& a, const ConstTensorView& b) {
  double error = 0;
  for (int64_t i = 0; i < a.shape().rows(); ++i) error = std::max(error, row_error(a, b, i));
  return error;
}

// Every level this machine offers, lowest first.
inline std::vector<Isa> isa_levels() {
  std::vector<Isa> levels;
  for (const Isa level : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (level <= detect_isa()) levels.push_back(level);
  }
  return levels;
}

// Uses a level until the end of the scope.
class IsaScope {
 public:
  explicit IsaScope(Isa level) : before_(isa()) { limit_isa(level); }
  ~IsaScope() { limit_isa(before_); }
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  Isa before_;
};

}  // namespace spb::test
