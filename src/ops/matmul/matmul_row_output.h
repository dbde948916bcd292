// Where a kernel puts the results of some consecutive weight rows.
#pragma once

#include <cstdint>

namespace spb::ops {

struct RowOutput {
  float* y;           // element [0, first row]
  int64_t stride;     // floats between rows of y
  const float* bias;  // of the first row; null when there is none
  bool accumulate;    // add to y instead of overwriting it
};

}  // namespace spb::ops
