#include "ops/embedding/embedding.h"

#include "core/tensor_check.h"
#include "ops/embedding/embedding_cpu.h"
#include "ops/embedding/embedding_cuda.h"

namespace spb::ops {

void embedding(Context& context, const EmbeddingArgs& args) {
  const Shape& table = args.table.shape();
  check(table.rank() == 2 && table[1] > 0, "embedding: table: expected [V, C] with C > 0, got {}",
        table);
  check(is_float(args.table.dtype()) || !is_plain(args.table.dtype()),
        "embedding: table: expected a float or block type, got {}", name(args.table.dtype()));
  const auto count = static_cast<int64_t>(args.ids.size());
  check_tensor("embedding", "table", args.table, args.table.dtype(), table);
  check_activation("embedding", "y", args.y, context.device(), Shape{count, table[1]});
  check_no_overlap("embedding", "table", args.table, "y", args.y);
  check(!args.ids_on_device || context.device().is_cuda(),
        "embedding: ids: expected host memory, got memory of a device");
  for (int64_t i = 0; i < (args.ids_on_device ? 0 : count); ++i) {
    const int32_t id = args.ids[static_cast<size_t>(i)];
    check(id >= 0 && id < table[0], "embedding: ids[{}]: expected 0 to {}, got {}", i, table[0] - 1,
          id);
  }
  if (count == 0) return;
  context.device().is_cuda() ? embedding_cuda(context, args) : embedding_cpu(context, args);
}

}  // namespace spb::ops
