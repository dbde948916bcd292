#include <algorithm>

#include "core/isa.h"
#include "ops/swiglu/swiglu_kernels.h"

namespace spb::ops {
namespace {

// Rows are cut into spans of this many columns, so that the one wide row of a decode step still
// spreads over the threads. About two microseconds of work.
constexpr int64_t kSpan = 8192;

}  // namespace

void swiglu_cpu(Context& context, const SwigluArgs& args) {
  const auto kernel =
      select_isa(&isa_portable::swiglu_span, &isa_avx2::swiglu_span, &isa_avx512::swiglu_span);
  const int64_t columns = args.gate.shape()[1];
  const int64_t spans = (columns + kSpan - 1) / kSpan;
  const int64_t grain = std::max<int64_t>(1, kSpan / columns);
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t i = piece / spans;
      const int64_t first = piece % spans * kSpan;
      kernel(args.gate.row_as<float>(i) + first, args.up.row_as<float>(i) + first,
             args.y.row_as<float>(i) + first, std::min(kSpan, columns - first));
    }
  };
  context.pool().parallel_for(args.gate.shape()[0] * spans, grain, work);
}

}  // namespace spb::ops
