// The ways in which a product is computed. Each handles some targets of one call; all threads of
// the pool take part in every one of them.
#pragma once

#include <span>

#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_weight.h"

namespace spb::ops {

// A target, and where its sums are formed: in y, or apart from a y that they are added to.
struct PathTarget {
  const MatmulWeight* weight;
  ConstTensorView bias;
  TensorView sums;
  TensorView y;
};

// Whatever the path, the rows of all targets are split over the threads in units of 16.
struct PathArgs {
  ConstTensorView x;
  std::span<const PathTarget* const> targets;

  int64_t tokens() const { return x.shape().rows(); }
  int64_t columns() const { return x.shape().last(); }
  int64_t x_stride() const { return x.row_stride_bytes() / static_cast<int64_t>(sizeof(float)); }
  int64_t groups() const {
    int64_t total = 0;
    for (const PathTarget* target : targets) total += target->weight->impl().groups();
    return total;
  }
};

// Groups [begin, end) of one target.
struct GroupRange {
  const PathTarget* target;
  int64_t begin;
  int64_t end;
};

// y += sums where they are apart, for the weight rows of a range.
void add_sums(const GroupRange& range);

// Calls body(GroupRange) for the parts of [begin, end) of all groups of all targets in a row, and
// adds up what it left apart.
template <typename Body>
void for_each_target(const PathArgs& args, int64_t begin, int64_t end, Body body) {
  int64_t first = 0;
  for (const PathTarget* target : args.targets) {
    const int64_t groups = target->weight->impl().groups();
    const int64_t from = begin > first ? begin - first : 0;
    const int64_t to = end - first < groups ? end - first : groups;
    if (from < to) {
      body(GroupRange{target, from, to});
      add_sums({target, from, to});
    }
    first += groups;
  }
}

RowOutput output_of(const PathTarget& target, int64_t first_row);

// The interleaved form of group g: where it lies, or packed into `scratch` (group_bytes).
const std::byte* group_cells(const MatmulWeight::Impl& weight, int64_t g, std::byte* scratch);

void multiply_tiles(Context& context, const PathArgs& args);         // bf16 tiles, many tokens
void multiply_row_tiles(Context& context, const PathArgs& args);     // the same, bf16 rows in place
void multiply_cells(Context& context, const PathArgs& args);         // block formats, int8 x
void multiply_float_panels(Context& context, const PathArgs& args);  // float rows, many tokens
void multiply_float_dots(Context& context, const PathArgs& args);    // float rows, a few tokens

}  // namespace spb::ops
