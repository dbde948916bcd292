#include "spike/int8_rows/int8_rows.h"

#include <algorithm>

#include "core/int8_row.h"
#include "core/tensor_check.h"
#include "spike/int8_rows/int8_rows_cuda.h"

namespace spb::spike {
namespace {

constexpr const char* kName = "int8_rows";
constexpr int64_t kGrainElements = 8192;  // below this, waking a thread costs more than the work

void round_row(float* x, int64_t columns, int64_t row) {
  const float scale = int8_scale(kName, row, x, columns);
  for (int64_t c = 0; c < columns; ++c) x[c] = int8_code(x[c], scale) * scale;
}

}  // namespace

void int8_rows(Context& context, TensorView x) {
  check_activation(kName, "x", x, context.device(), x.shape());
  if (context.device().is_cuda()) return int8_rows_cuda(context, x);
  const int64_t columns = x.shape().last();
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, columns));
  context.pool().parallel_for(x.shape().rows(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) round_row(x.row_as<float>(n), columns, n);
  });
}

}  // namespace spb::spike
