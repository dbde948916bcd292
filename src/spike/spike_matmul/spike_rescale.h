// From sums over the groups to results. Included only by kernel files; everything is internal to
// the instruction set they are compiled for.
#pragma once

#include "core/simd/exact.h"
#include "ops/matmul/matmul_row_output.h"

namespace spb::spike::SPB_ISA {
using namespace spb::SPB_ISA;

// Stores or adds the results of rows first_row, first_row + 1, ... of `rows`, from their sums over
// groups.
inline void put_results(const ops::RowOutput& out, int64_t token, int64_t first_row, int64_t rows,
                        Vec sums, Vec threshold) {
  const int64_t left = rows - first_row;
  if (left <= 0) return;
  float* y = out.y + token * out.stride + first_row;
  if (left >= kLanes) {
    const Vec bias = out.bias != nullptr ? load(out.bias + first_row) : Vec{};
    const Vec value = fused(threshold, sums, bias);
    store(y, out.accumulate ? load(y) + value : value);
    return;
  }
  const int count = static_cast<int>(left);
  const Vec bias = out.bias != nullptr ? load_partial(out.bias + first_row, count) : Vec{};
  Vec value = fused(threshold, sums, bias);
  if (out.accumulate) value += load_partial(y, count);
  store_partial(y, value, count);
}

}  // namespace spb::spike::SPB_ISA
