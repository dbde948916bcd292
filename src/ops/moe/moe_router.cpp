#include "ops/moe/moe_router.h"

#include <algorithm>
#include <cmath>

#include "core/tensor_check.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

// Logits read by one thread before another is worth waking: some ten microseconds of work.
constexpr int64_t kGrainLogits = 1024;

// Strictly before in the order of choices; a NaN is behind every number.
bool before(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

void choose(const float* logits, int64_t num_experts, int32_t* chosen, int64_t k) {
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t place = std::min(e, k);
    while (place > 0 && before(logits[e], logits[chosen[place - 1]])) --place;
    if (place == k) continue;
    std::copy_backward(chosen + place, chosen + std::min(e, k - 1), chosen + std::min(e + 1, k));
    chosen[place] = static_cast<int32_t>(e);
  }
}

// A score up to a factor that all experts of the row share.
double unscaled(RouterScore score, double logit, double largest) {
  if (score == RouterScore::kSigmoid) return 1.0 / (1.0 + std::exp(-logit));
  return logit == largest ? 1.0 : std::exp(logit - largest);  // inf - inf would be NaN
}

void route_row(const MoeRouteArgs& args, int64_t i) {
  const float* logits = args.logits.row_as<float>(i);
  const int64_t num_experts = args.logits.shape()[1];
  int32_t* chosen = args.choices.experts.row_as<int32_t>(i);
  float* probabilities = args.choices.probabilities.row_as<float>(i);
  const int64_t k = args.choices.experts.shape()[1];
  choose(logits, num_experts, chosen, k);
  const double largest = logits[chosen[0]];
  double divisor = args.score == RouterScore::kSoftmax ? 0 : 1;
  for (int64_t e = 0; e < num_experts && args.score == RouterScore::kSoftmax; ++e) {
    divisor += unscaled(args.score, logits[e], largest);
  }
  if (args.renormalize) {
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += unscaled(args.score, logits[chosen[j]], largest);
    if (sum != 0) divisor *= sum / divisor;  // not divisor = sum: a NaN stays
  }
  for (int64_t j = 0; j < k; ++j) {
    probabilities[j] =
        static_cast<float>(unscaled(args.score, logits[chosen[j]], largest) / divisor);
  }
}

}  // namespace

void moe_logits(Context& context, const MoeLogitsArgs& args) {
  const Shape& shape = args.x.shape();
  check(shape.rank() == 2, "moe_logits: x: expected [N, C], got {}", shape);
  check_activation("moe_logits", "x", args.x, context.device(), shape);
  if (context.device().is_cuda()) return moe_logits_cuda(context, args);
  const MatmulTarget target{&args.router, {}, args.logits};
  matmul(context, {args.x, {&target, 1}});
}

void moe_route(Context& context, const MoeRouteArgs& args) {
  const Shape& shape = args.logits.shape();
  check(shape.rank() == 2 && shape[1] > 0, "moe_route: logits: expected [N, E] with E > 0, got {}",
        shape);
  check_tensor("moe_route", "logits", args.logits, DType::kF32, shape);
  const Shape& chosen = args.choices.experts.shape();
  check(chosen.rank() == 2 && chosen[1] >= 1 && chosen[1] <= shape[1],
        "moe_route: experts: expected [N, k] with k from 1 to {}, got {}", shape[1], chosen);
  const Shape expected{shape[0], chosen[1]};
  check_tensor("moe_route", "experts", args.choices.experts, DType::kI32, expected);
  check_tensor("moe_route", "probabilities", args.choices.probabilities, DType::kF32, expected);
  check_no_overlap("moe_route", "logits", args.logits, "experts", args.choices.experts);
  check_no_overlap("moe_route", "logits", args.logits, "probabilities", args.choices.probabilities);
  check_no_overlap("moe_route", "experts", args.choices.experts, "probabilities",
                   args.choices.probabilities);
  if (context.device().is_cuda()) return moe_route_cuda(context, args);
  const int64_t grain = std::max<int64_t>(1, kGrainLogits / shape[1]);
  context.pool().parallel_for(shape[0], grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) route_row(args, i);
  });
}

}  // namespace spb::ops
