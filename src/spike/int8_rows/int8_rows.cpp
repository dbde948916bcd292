#include "spike/int8_rows/int8_rows.h"

#include <algorithm>
#include <cmath>

#include "core/tensor_check.h"

namespace spb::spike {
namespace {

constexpr const char* kName = "int8_rows";
constexpr float kMinScale = 1e-5f;
constexpr float kMaxScale = 1e4f;
constexpr int64_t kGrainElements = 8192;  // below this, waking a thread costs more than the work

void round_row(float* x, int64_t columns, int64_t row) {
  float largest = 0;
  bool finite = true;
  for (int64_t c = 0; c < columns; ++c) {
    finite &= std::isfinite(x[c]);
    largest = std::max(largest, std::fabs(x[c]));
  }
  if (!finite) {
    const float* bad = std::find_if_not(x, x + columns, [](float v) { return std::isfinite(v); });
    fail(ErrorKind::kData, "{}: row {}, column {}: expected a finite number, got {}", kName, row,
         bad - x, *bad);
  }
  const float scale = std::clamp(largest / 127.0f, kMinScale, kMaxScale);
  for (int64_t c = 0; c < columns; ++c) {
    x[c] = std::clamp(std::nearbyintf(x[c] / scale), -128.0f, 127.0f) * scale;
  }
}

}  // namespace

void int8_rows(Context& context, TensorView x) {
  check_tensor(kName, "x", x, DType::kF32, x.shape());
  const int64_t columns = x.shape().last();
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, columns));
  context.pool().parallel_for(x.shape().rows(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) round_row(x.row_as<float>(n), columns, n);
  });
}

}  // namespace spb::spike
