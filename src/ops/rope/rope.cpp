#include "ops/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/tensor_check.h"
#include "ops/rope/rope_cuda.h"
#include "ops/rope/rope_kernels.h"

namespace spb::ops {
namespace {

// Beyond it an angle in double has lost the fraction of a turn that matters.
constexpr int64_t kMaxPosition = int64_t{1} << 40;

void check_also(const Device& device, const RopeArgs& args) {
  if (!args.also.defined()) return;
  const Shape& x = args.x.shape();
  const Shape& also = args.also.shape();
  check(also.rank() == 3 && also[0] == x[0] && also[2] == x[2],
        "rope: also: expected [{}, H, {}], got {}", x[0], x[2], also);
  check_activation("rope", "also", args.also, device, also);
  check(args.also.dtype() == args.x.dtype(), "rope: also: expected {}, got {}",
        name(args.x.dtype()), name(args.also.dtype()));
  check_no_overlap("rope", "x", args.x, "also", args.also);
}

void check_args(const Device& device, const RopeArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 3 && shape[2] > 0 && shape[2] % 2 == 0,
        "rope: x: expected [N, H, D] with D even and > 0, got {}", shape);
  check_activation("rope", "x", args.x, device, shape);
  check_also(device, args);
  check(static_cast<int64_t>(args.positions.size()) == shape[0],
        "rope: positions: expected {} (one per token), got {}", shape[0], args.positions.size());
  for (size_t i = 0; i < args.positions.size(); ++i) {
    const int64_t position = args.positions[i];
    check(position >= 0 && position <= kMaxPosition,
          "rope: positions[{}]: expected 0 to {}, got {}", i, kMaxPosition, position);
  }
  check(args.theta > 0 && std::isfinite(args.theta), "rope: theta: expected a number > 0, got {}",
        args.theta);
  if (!args.factors.defined()) return;
  check_tensor("rope", "factors", args.factors, DType::kF32, Shape{shape[2] / 2});
  if (device.is_cuda()) return;  // their values are out of reach here
  for (int64_t j = 0; j < shape[2] / 2; ++j) {
    const float factor = args.factors.as<float>()[j];
    check(factor > 0 && std::isfinite(factor), "rope: factors[{}]: expected a number > 0, got {}",
          j, factor);
  }
}

}  // namespace

void rope(Context& context, const RopeArgs& args) {
  check_args(context.device(), args);
  if (context.device().is_cuda()) {
    if (args.x.shape()[0] > 0) rope_cuda(context, args);
    return;
  }
  RopeArgs one = args;
  for (const TensorView& x : {args.x, args.also}) {
    one.x = x;
    if (x.defined() && x.shape().elements() > 0) rope_cpu(context, one);
  }
}

std::vector<float> llama3_rope_factors(const Llama3Scaling& scaling, double theta,
                                       int64_t head_dim) {
  const auto positive = [](const char* what, double value) {
    check(value > 0 && std::isfinite(value), "rope scaling: {}: expected a number > 0, got {}",
          what, value);
  };
  positive("factor", scaling.factor);
  positive("low_frequency_factor", scaling.low_frequency_factor);
  positive("original_context", scaling.original_context);
  positive("theta", theta);
  check(scaling.high_frequency_factor > scaling.low_frequency_factor &&
            std::isfinite(scaling.high_frequency_factor),
        "rope scaling: high_frequency_factor: expected more than low_frequency_factor {}, got {}",
        scaling.low_frequency_factor, scaling.high_frequency_factor);
  check(head_dim > 0 && head_dim % 2 == 0, "rope scaling: head_dim: expected even and > 0, got {}",
        head_dim);
  std::vector<float> factors(static_cast<size_t>(head_dim / 2));
  for (size_t j = 0; j < factors.size(); ++j) {
    const double exponent = 2.0 * static_cast<double>(j) / static_cast<double>(head_dim);
    const double wavelength = 2.0 * std::numbers::pi * std::pow(theta, exponent);
    // 0 where the context holds too few turns of this pair, 1 where it holds enough.
    const double turns = scaling.original_context / wavelength;
    const double keep =
        std::clamp((turns - scaling.low_frequency_factor) /
                       (scaling.high_frequency_factor - scaling.low_frequency_factor),
                   0.0, 1.0);
    factors[j] = static_cast<float>(1.0 / ((1.0 - keep) / scaling.factor + keep));
  }
  return factors;
}

}  // namespace spb::ops
