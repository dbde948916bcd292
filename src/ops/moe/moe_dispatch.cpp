#include "ops/moe/moe_dispatch.h"

#include <algorithm>
#include <cstring>

#include "core/tensor_check.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

// Elements that one thread moves before another is worth waking.
constexpr int64_t kGrainElements = 16384;

int64_t grain_of(const ConstTensorView& rows) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, rows.shape().last()));
}

void scatter_token(const MoeScatterArgs& args, int64_t i) {
  const int64_t k = args.plan.experts_per_token;
  const int64_t columns = args.y.shape()[1];
  float* y = args.y.row_as<float>(i);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t row = args.plan.row_of[static_cast<size_t>(i * k + j)];
    if (row < 0) continue;
    const float p = args.probabilities.row_as<float>(i)[j];
    const float* from = args.rows.row_as<float>(row);
    for (int64_t c = 0; c < columns; ++c) y[c] += p * from[c];
  }
}

}  // namespace

void moe_gather(Context& context, const MoeGatherArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 2 && shape[0] == args.plan.num_tokens,
        "moe_gather: x: expected [{}, C], got {}", args.plan.num_tokens, shape);
  check_activation("moe_gather", "x", args.x, context.device(), shape);
  check_tensor("moe_gather", "grouped", args.grouped, args.x.dtype(),
               Shape{args.plan.rows(), shape[1]});
  check_no_overlap("moe_gather", "x", args.x, "grouped", args.grouped);
  if (context.device().is_cuda()) return moe_gather_cuda(context, args);
  const auto bytes = static_cast<size_t>(args.grouped.row_bytes_used());
  const auto copy_rows = [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t token = args.plan.token_of[static_cast<size_t>(r)];
      if (token >= 0) {
        std::memcpy(args.grouped.row(r), args.x.row(token), bytes);
      } else {
        std::memset(args.grouped.row(r), 0, bytes);
      }
    }
  };
  if (bytes > 0) context.pool().parallel_for(args.plan.rows(), grain_of(args.x), copy_rows);
}

void moe_scatter(Context& context, const MoeScatterArgs& args) {
  const Shape& shape = args.y.shape();
  check(shape.rank() == 2 && shape[0] == args.plan.num_tokens,
        "moe_scatter: y: expected [{}, C], got {}", args.plan.num_tokens, shape);
  check_activation("moe_scatter", "y", args.y, context.device(), shape);
  check_tensor("moe_scatter", "rows", args.rows, args.y.dtype(), Shape{args.plan.rows(), shape[1]});
  check_tensor("moe_scatter", "probabilities", args.probabilities, DType::kF32,
               Shape{args.plan.num_tokens, args.plan.experts_per_token});
  check_no_overlap("moe_scatter", "rows", args.rows, "y", args.y);
  check_no_overlap("moe_scatter", "probabilities", args.probabilities, "y", args.y);
  if (context.device().is_cuda()) return moe_scatter_cuda(context, args);
  context.pool().parallel_for(shape[0], grain_of(args.y), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) scatter_token(args, i);
  });
}

}  // namespace spb::ops
