#include <vector>

#include "core/block_formats.h"
#include "ops/embedding/embedding.h"

namespace spb::ops {

// The whole table in f32, then plain indexing: slow and beyond doubt.
void embedding_reference(const EmbeddingArgs& args) {
  const int64_t columns = args.table.shape()[1];
  std::vector<float> table(static_cast<size_t>(args.table.shape().elements()));
  for (int64_t i = 0; i < args.table.shape()[0]; ++i) {
    dequantize_row(args.table.dtype(), args.table.row(i), table.data() + i * columns, columns);
  }
  for (int64_t i = 0; i < static_cast<int64_t>(args.ids.size()); ++i) {
    float* y = args.y.row_as<float>(i);
    for (int64_t c = 0; c < columns; ++c) {
      y[c] = table[static_cast<size_t>(args.ids[static_cast<size_t>(i)] * columns + c)];
    }
  }
}

}  // namespace spb::ops
