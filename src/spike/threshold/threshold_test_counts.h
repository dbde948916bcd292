// What the tests of spike_threshold and of its gradient share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "core/test_errors.h"
#include "core/test_tensors.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

inline constexpr int8_t kUntouched = 99;

// Counts whose memory starts as what no result holds, with a gap behind every row of the core.
class Counts {
 public:
  Counts(int64_t rows, int64_t channels)
      : core_(DType::kI8, Shape{rows, channels + kGap}), thresholds_(DType::kF32, Shape{rows}) {
    std::fill_n(core_.as<int8_t>(), rows * (channels + kGap), kUntouched);
    std::fill_n(thresholds_.as<float>(), rows, test::kPoison);
    out.core = {core_.view().data(), DType::kI8, Shape{rows, channels}, channels + kGap};
    out.thresholds = thresholds_.view();
    out.bursts = {{7, 7, 7}};  // of an earlier call
    out.active = {7};
    out.active_begin = {7, 7};
  }

  float threshold(int64_t m) const { return out.thresholds.as<float>()[m]; }

  int32_t count(int64_t m, int32_t c) const {
    int32_t sum = out.core.row_as<int8_t>(m)[c];
    for (const Burst& burst : out.bursts) {
      if (burst.row == m && burst.channel == c) sum += burst.excess;
    }
    return sum;
  }

  bool gaps_untouched() const {
    for (int64_t m = 0; m < out.core.shape()[0]; ++m) {
      const int8_t* end = out.core.row_as<int8_t>(m) + out.core.shape()[1];
      if (!std::all_of(end, end + kGap, [](int8_t v) { return v == kUntouched; })) return false;
    }
    return true;
  }

  SpikeCounts out;

 private:
  static constexpr int64_t kGap = 3;
  Tensor core_;
  Tensor thresholds_;
};

}  // namespace spb::spike
