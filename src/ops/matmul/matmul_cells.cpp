// Block formats times x quantised to int8.
#include <algorithm>

#include "core/error.h"
#include "core/isa.h"
#include "ops/matmul/matmul_path.h"

namespace spb::ops {
namespace {

// Up to this many elements of x each thread quantises all of it for itself, which is quicker than
// waiting for the others.
constexpr int64_t kPrivateElements = 4096;

const CellKernels& kernels() {
  return select_isa(isa_portable::kCellKernels, isa_avx2::kCellKernels, isa_avx512::kCellKernels);
}

CellKernel kernel_for(DType dtype) {
  const CellKernels& k = kernels();
  switch (dtype) {
    case DType::kQ8_0: return k.q8_0;
    case DType::kQ4_0: return k.q4_0;
    case DType::kQ4_1: return k.q4_1;
    case DType::kQ5_0: return k.q5_0;
    case DType::kQ5_1: return k.q5_1;
    case DType::kQ4_K: return k.q4_k;
    case DType::kQ5_K: return k.q5_k;
    case DType::kQ6_K: return k.q6_k;
    default: fail(ErrorKind::kUsage, "matmul: no cells of {}", name(dtype));
  }
}

void quantize_rows(const PathArgs& args, int64_t begin, int64_t end, XCell* cells) {
  const int64_t per_row = args.columns() / kCellColumns;
  for (int64_t i = begin; i < end; ++i) {
    kernels().quantize(args.x.as<float>() + i * args.x_stride(), args.columns(),
                       cells + i * per_row);
  }
}

// Takes rows as they lie in a file; null where that is not worth its while.
CellKernel row_kernel_for(DType dtype, int64_t tokens) {
  if (tokens > kDirectTokens) return nullptr;
  const CellKernels& k = kernels();
  switch (dtype) {
    case DType::kQ8_0: return k.rows_q8_0;
    case DType::kQ4_0: return k.rows_q4_0;
    case DType::kQ4_1: return k.rows_q4_1;
    case DType::kQ5_0: return k.rows_q5_0;
    case DType::kQ5_1: return k.rows_q5_1;
    default: return nullptr;
  }
}

void multiply_groups(const PathArgs& args, const GroupRange& range, const XCell* x,
                     CellKernel kernel, const std::byte* groups, int64_t bytes) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t row = range.begin * kGroupRows;
  kernel({.groups = groups,
          .group_bytes = bytes,
          .rows = std::min(range.end * kGroupRows, weight.rows) - row,
          .cells = weight.columns / kCellColumns,
          .x = x,
          .tokens = args.tokens(),
          .out = output_of(*range.target, row)});
}

void multiply_range(const PathArgs& args, const GroupRange& range, const XCell* x,
                    std::byte* scratch) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const CellKernel kernel = kernel_for(weight.dtype);
  const int64_t bytes = group_bytes(weight.dtype, weight.columns);
  if (weight.source == nullptr) {
    return multiply_groups(args, range, x, kernel, weight.owned.data() + range.begin * bytes,
                           bytes);
  }
  // Rows that are not kept interleaved: whole groups directly, the others after packing each.
  int64_t g = range.begin;
  if (const CellKernel direct = row_kernel_for(weight.dtype, args.tokens())) {
    const int64_t whole = std::min(range.end, weight.rows / kGroupRows);
    const int64_t stride = kGroupRows * weight.row_stride;
    if (g < whole) {
      multiply_groups(args, {range.target, g, whole}, x, direct, weight.source + g * stride,
                      stride);
    }
    g = std::max(g, whole);
  }
  for (; g < range.end; ++g) {
    multiply_groups(args, {range.target, g, g + 1}, x, kernel, group_cells(weight, g, scratch),
                    bytes);
  }
}

int64_t scratch_bytes(const PathArgs& args) {
  int64_t bytes = 0;
  for (const PathTarget* target : args.targets) {
    const MatmulWeight::Impl& weight = target->weight->impl();
    if (weight.source != nullptr)
      bytes = std::max(bytes, group_bytes(weight.dtype, weight.columns));
  }
  return (bytes + 63) / 64 * 64;
}

}  // namespace

const std::byte* group_cells(const MatmulWeight::Impl& weight, int64_t g, std::byte* scratch) {
  if (weight.source == nullptr) {
    return weight.owned.data() + g * group_bytes(weight.dtype, weight.columns);
  }
  const int64_t first = g * kGroupRows;
  pack_group(weight.dtype, weight.source + first * weight.row_stride, weight.row_stride,
             std::min(kGroupRows, weight.rows - first), weight.columns, scratch);
  return scratch;
}

void multiply_cells(Context& context, const PathArgs& args) {
  const int threads = context.pool().threads();
  const int64_t cells = args.tokens() * (args.columns() / kCellColumns);
  const bool own_copy = threads > 1 && args.tokens() * args.columns() <= kPrivateElements;
  XCell* x = context.arena().allocate<XCell>(own_copy ? cells * threads : cells);
  const int64_t scratch_per_thread = scratch_bytes(args);
  std::byte* scratch = context.arena().allocate_bytes(scratch_per_thread * threads);
  if (!own_copy) {
    context.pool().parallel_for(args.tokens(), 1, [&](int64_t begin, int64_t end, int) {
      quantize_rows(args, begin, end, x);
    });
  }
  context.pool().parallel_for(args.groups(), 1, [&](int64_t begin, int64_t end, int thread) {
    XCell* mine = own_copy ? x + cells * thread : x;
    if (own_copy) quantize_rows(args, 0, args.tokens(), mine);
    for_each_target(args, begin, end, [&](const GroupRange& range) {
      multiply_range(args, range, mine, scratch + scratch_per_thread * thread);
    });
  });
}

}  // namespace spb::ops
