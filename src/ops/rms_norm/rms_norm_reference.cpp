#include <cmath>

#include "ops/rms_norm/rms_norm.h"

namespace spb::ops {

void rms_norm_reference(const RmsNormArgs& args) {
  const int64_t columns = args.x.shape()[1];
  const float* weight = args.weight.as<float>();
  for (int64_t i = 0; i < args.x.shape()[0]; ++i) {
    const float* h = args.x.row_as<float>(i);
    if (args.residual.defined()) {
      float* residual = args.residual.row_as<float>(i);
      for (int64_t c = 0; c < columns; ++c) residual[c] += h[c];
      h = residual;
    }
    double sum = 0;
    for (int64_t c = 0; c < columns; ++c) sum += static_cast<double>(h[c]) * h[c];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(columns) + args.eps);
    float* y = args.y.row_as<float>(i);
    for (int64_t c = 0; c < columns; ++c) {
      const double before = args.accumulate ? y[c] : 0.0;
      y[c] = static_cast<float>(before + h[c] * scale * weight[c]);
    }
  }
}

}  // namespace spb::ops
