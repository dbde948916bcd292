#include "ops/embedding/embedding_cpu.h"

#include <algorithm>

#include "core/block_formats.h"

namespace spb::ops {
namespace {

// Elements worth a thread's while: about two microseconds of work.
constexpr int64_t kGrainElements = 8192;

}  // namespace

void embedding_cpu(Context& context, const EmbeddingArgs& args) {
  const int64_t columns = args.table.shape()[1];
  const int64_t grain = std::max<int64_t>(1, kGrainElements / columns);
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      dequantize_row(args.table.dtype(), args.table.row(args.ids[static_cast<size_t>(i)]),
                     args.y.row_as<float>(i), columns);
    }
  };
  context.pool().parallel_for(static_cast<int64_t>(args.ids.size()), grain, work);
}

}  // namespace spb::ops
