// Float weights times many rows of x: panels of weights are interleaved once per call and stay in
// the second-level cache while all rows of x pass by.
#include <algorithm>

#include "core/isa.h"
#include "ops/matmul/matmul_float_cpu.h"
#include "ops/matmul/matmul_path.h"

namespace spb::ops {
namespace {

// Columns summed before results go to memory: a panel of this length and the rows of x beside it
// fit the first-level cache.
constexpr int64_t kColumnsPerPass = 256;
constexpr int64_t kPanelFloats = kColumnsPerPass * kGroupRows;
// Panels interleaved together: 512 KiB.
constexpr int64_t kPanelsAtOnce = 32;

const FloatKernels& kernels() {
  return select_isa(isa_portable::kFloatKernels, isa_avx2::kFloatKernels,
                    isa_avx512::kFloatKernels);
}

template <typename T>
void interleave_as(const MatmulWeight::Impl& weight, int64_t row, int64_t k, int64_t columns,
                   void (*kernel)(const T*, int64_t, int64_t, int64_t, float*), float* panel) {
  const auto* rows = reinterpret_cast<const T*>(weight.source + row * weight.row_stride) + k;
  kernel(rows, weight.row_stride / static_cast<int64_t>(sizeof(T)),
         std::min(kGroupRows, weight.rows - row), columns, panel);
}

void interleave(const MatmulWeight::Impl& weight, int64_t row, int64_t k, int64_t columns,
                float* panel) {
  switch (weight.dtype) {
    case DType::kF16:
      return interleave_as<f16>(weight, row, k, columns, kernels().interleave_f16, panel);
    case DType::kBF16:
      return interleave_as<bf16>(weight, row, k, columns, kernels().interleave_bf16, panel);
    default: return interleave_as<float>(weight, row, k, columns, kernels().interleave_f32, panel);
  }
}

// Groups [begin, end) of a target; at most kPanelsAtOnce.
void multiply_groups(const PathArgs& args, const GroupRange& range, float* panels) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t first_row = range.begin * kGroupRows;
  RowOutput out = output_of(*range.target, first_row);
  for (int64_t k = 0; k < weight.columns; k += kColumnsPerPass) {
    const int64_t columns = std::min(kColumnsPerPass, weight.columns - k);
    for (int64_t g = range.begin; g < range.end; ++g) {
      interleave(weight, g * kGroupRows, k, columns, panels + (g - range.begin) * kPanelFloats);
    }
    kernels().multiply_panels({.x = args.x.as<float>() + k,
                               .x_stride = args.x_stride(),
                               .tokens = args.tokens(),
                               .panels = panels,
                               .panel_floats = kPanelFloats,
                               .rows = std::min(range.end * kGroupRows, weight.rows) - first_row,
                               .columns = columns,
                               .out = out});
    out.bias = nullptr;  // the next pass adds to this one
    out.accumulate = true;
  }
}

}  // namespace

void multiply_float_panels(Context& context, const PathArgs& args) {
  const int64_t floats = kPanelsAtOnce * kPanelFloats;
  float* panels = context.arena().allocate<float>(floats * context.pool().threads());
  context.pool().parallel_for(args.groups(), 2, [&](int64_t begin, int64_t end, int thread) {
    for_each_target(args, begin, end, [&](const GroupRange& range) {
      for (int64_t g = range.begin; g < range.end; g += kPanelsAtOnce) {
        multiply_groups(args, {range.target, g, std::min(g + kPanelsAtOnce, range.end)},
                        panels + floats * thread);
      }
    });
  });
}

}  // namespace spb::ops
