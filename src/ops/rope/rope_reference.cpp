#include <cmath>
#include <utility>

#include "ops/rope/rope.h"

namespace spb::ops {

void rope_reference(const RopeArgs& args) {
  if (args.also.defined()) {
    RopeArgs second = args;
    second.x = std::exchange(second.also, {});
    rope_reference(second);
  }
  const Shape& shape = args.x.shape();
  const int64_t pairs = shape[2] / 2;
  const bool half = args.pairs == RopePairs::kHalf;
  for (int64_t i = 0; i < shape[0]; ++i) {
    for (int64_t j = 0; j < pairs; ++j) {
      const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(shape[2]);
      const double factor = args.factors.defined() ? args.factors.as<float>()[j] : 1.0;
      const double position = static_cast<double>(args.positions[static_cast<size_t>(i)]);
      const double angle = position * std::pow(args.theta, exponent) / factor;
      for (int64_t h = 0; h < shape[1]; ++h) {
        float* head = args.x.row_as<float>(i * shape[1] + h);
        float& a = head[half ? j : 2 * j];
        float& b = head[half ? j + pairs : 2 * j + 1];
        const double x = a;
        const double y = b;
        a = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
        b = static_cast<float>(x * std::sin(angle) + y * std::cos(angle));
      }
    }
  }
}

}  // namespace spb::ops
