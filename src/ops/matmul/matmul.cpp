// matmul: checks its arguments and chooses the path.
#include "ops/matmul/matmul.h"

#include <algorithm>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/isa.h"
#include "ops/matmul/matmul_float_cpu.h"
#include "ops/matmul/matmul_weight.h"

namespace spb::ops {
namespace {

void check_target(const MatmulArgs& args, size_t index) {
  const MatmulTarget& target = args.targets[index];
  check(target.weight != nullptr && target.weight->defined(),
        "matmul: target {}: expected a prepared weight, got none", index);
  const int64_t rows = target.weight->rows();
  check(args.x.shape().last() == target.weight->columns(),
        "matmul: target {}: expected x with {} columns, got {}", index, target.weight->columns(),
        args.x.shape().last());
  check(target.y.defined() && target.y.dtype() == DType::kF32 && target.y.shape().last() == rows &&
            target.y.shape().rows() == args.x.shape().rows(),
        "matmul: target {}: y: expected f32 [{}, {}], got {} {}", index, args.x.shape().rows(),
        rows, name(target.y.dtype()), target.y.shape().to_string());
  check(!target.bias.defined() ||
            (target.bias.dtype() == DType::kF32 && target.bias.shape().elements() == rows),
        "matmul: target {}: bias: expected f32 [{}], got {} {}", index, rows,
        name(target.bias.dtype()), target.bias.shape().to_string());
}

RowOutput output_of(const MatmulTarget& target, int64_t first_row) {
  RowOutput out{};
  out.y = target.y.as<float>() + first_row;
  out.stride = target.y.row_stride_bytes() / static_cast<int64_t>(sizeof(float));
  if (target.bias.defined()) out.bias = target.bias.as<float>() + first_row;
  out.accumulate = target.accumulate;
  return out;
}

template <typename T>
void dot_source(const ConstTensorView& x, const MatmulTarget& target, int64_t begin, int64_t end,
                void (*kernel)(const FloatDotArgs<T>&)) {
  const MatmulWeight::Impl& w = target.weight->impl();
  kernel({.x = x.as<float>(),
          .x_stride = x.row_stride_bytes() / static_cast<int64_t>(sizeof(float)),
          .tokens = x.shape().rows(),
          .weights = reinterpret_cast<const T*>(w.source + begin * w.row_stride),
          .weight_stride = w.row_stride / static_cast<int64_t>(sizeof(T)),
          .rows = end - begin,
          .columns = w.columns,
          .out = output_of(target, begin)});
}

void dot_rows(const ConstTensorView& x, const MatmulTarget& target, int64_t begin, int64_t end,
              float* scratch) {
  const FloatKernels& kernels =
      select_isa(isa_portable::kFloatKernels, isa_avx2::kFloatKernels, isa_avx512::kFloatKernels);
  const MatmulWeight::Impl& w = target.weight->impl();
  if (w.dtype == DType::kF32) return dot_source(x, target, begin, end, kernels.dot_f32);
  if (w.dtype == DType::kF16) return dot_source(x, target, begin, end, kernels.dot_f16);
  if (w.dtype == DType::kBF16) return dot_source(x, target, begin, end, kernels.dot_bf16);
  for (int64_t n = begin; n < end; n += 2) {
    const int64_t count = std::min<int64_t>(2, end - n);
    for (int64_t r = 0; r < count; ++r) {
      dequantize_row(w.dtype, w.source + (n + r) * w.row_stride, scratch + r * w.columns,
                     w.columns);
    }
    kernels.dot_f32({.x = x.as<float>(),
                     .x_stride = x.row_stride_bytes() / static_cast<int64_t>(sizeof(float)),
                     .tokens = x.shape().rows(),
                     .weights = scratch,
                     .weight_stride = w.columns,
                     .rows = count,
                     .columns = w.columns,
                     .out = output_of(target, n)});
  }
}

}  // namespace

void matmul(Context& context, const MatmulArgs& args) {
  check(args.x.defined() && args.x.dtype() == DType::kF32, "matmul: x: expected f32, got {}",
        args.x.defined() ? name(args.x.dtype()) : "nothing");
  for (size_t t = 0; t < args.targets.size(); ++t) check_target(args, t);
  if (args.x.shape().rows() == 0) return;
  Arena::Scope scope(context.arena());
  const int64_t columns = args.x.shape().last();
  float* scratch = context.arena().allocate<float>(2 * columns * context.pool().threads());
  for (const MatmulTarget& target : args.targets) {
    context.pool().parallel_for(
        target.weight->rows(), 16, [&](int64_t begin, int64_t end, int thread) {
          dot_rows(args.x, target, begin, end, scratch + 2 * columns * thread);
        });
  }
}

}  // namespace spb::ops
