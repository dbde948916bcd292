#include <algorithm>

#include "core/isa.h"
#include "ops/rms_norm/rms_norm_kernels.h"

namespace spb::ops {
namespace {

// Elements worth a thread's while: about two microseconds of work.
constexpr int64_t kGrainElements = 16384;

int64_t stride(const ConstTensorView& tensor) {
  return tensor.row_stride_bytes() / static_cast<int64_t>(sizeof(float));
}

}  // namespace

void rms_norm_cpu(Context& context, const RmsNormArgs& args) {
  const bool has_residual = args.residual.defined();
  const RmsNormRows rows{.x = args.x.as<float>(),
                         .residual = has_residual ? args.residual.as<float>() : nullptr,
                         .weight = args.weight.as<float>(),
                         .y = args.y.as<float>(),
                         .x_stride = stride(args.x),
                         .residual_stride = stride(args.residual),
                         .y_stride = stride(args.y),
                         .columns = args.x.shape()[1],
                         .eps = args.eps,
                         .accumulate = args.accumulate};
  const auto kernel = select_isa(&isa_portable::rms_norm_rows, &isa_avx2::rms_norm_rows,
                                 &isa_avx512::rms_norm_rows);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / rows.columns);
  context.pool().parallel_for(args.x.shape()[0], grain,
                              [&](int64_t begin, int64_t end, int) { kernel(rows, begin, end); });
}

}  // namespace spb::ops
