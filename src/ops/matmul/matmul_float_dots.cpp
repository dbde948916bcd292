// Float weights times a few rows of x: dot products straight from the layout of the source.
#include <algorithm>

#include "core/isa.h"
#include "ops/matmul/matmul_float_cpu.h"
#include "ops/matmul/matmul_path.h"

namespace spb::ops {
namespace {

template <typename T>
void dot_range(const PathArgs& args, const GroupRange& range,
               void (*kernel)(const FloatDotArgs<T>&)) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t begin = range.begin * kGroupRows;
  kernel({.x = args.x.as<float>(),
          .x_stride = args.x_stride(),
          .tokens = args.tokens(),
          .weights = reinterpret_cast<const T*>(weight.source + begin * weight.row_stride),
          .weight_stride = weight.row_stride / static_cast<int64_t>(sizeof(T)),
          .rows = std::min(range.end * kGroupRows, weight.rows) - begin,
          .columns = weight.columns,
          .out = output_of(*range.target, begin)});
}

}  // namespace

void multiply_float_dots(Context& context, const PathArgs& args) {
  const FloatKernels& kernels =
      select_isa(isa_portable::kFloatKernels, isa_avx2::kFloatKernels, isa_avx512::kFloatKernels);
  context.pool().parallel_for(args.groups(), 1, [&](int64_t begin, int64_t end, int) {
    for_each_target(args, begin, end, [&](const GroupRange& range) {
      switch (range.target->weight->dtype()) {
        case DType::kF16: return dot_range(args, range, kernels.dot_f16);
        case DType::kBF16: return dot_range(args, range, kernels.dot_bf16);
        default: return dot_range(args, range, kernels.dot_f32);
      }
    });
  });
}

}  // namespace spb::ops
