#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/moe/moe_router.h"

namespace spb::ops {
namespace {

std::vector<double> softmax(const std::vector<double>& logits) {
  const double nan = std::nan("");
  double largest = -HUGE_VAL;
  for (const double l : logits) {
    if (std::isnan(l)) return std::vector<double>(logits.size(), nan);
    largest = std::max(largest, l);
  }
  std::vector<double> scores;
  for (const double l : logits) {
    scores.push_back(std::isinf(largest) ? (l == largest ? 1.0 : 0.0) : std::exp(l - largest));
  }
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& s : scores) s /= sum;
  return scores;
}

std::vector<double> sigmoid(std::vector<double> logits) {
  for (double& l : logits) l = 1.0 / (1.0 + std::exp(-l));
  return logits;
}

}  // namespace

void moe_route_reference(const MoeRouteArgs& args) {
  const auto num_experts = static_cast<size_t>(args.logits.shape()[1]);
  const int64_t k = args.choices.experts.shape()[1];
  for (int64_t i = 0; i < args.logits.shape()[0]; ++i) {
    const float* row = args.logits.row_as<float>(i);
    const std::vector<double> logits(row, row + num_experts);
    const std::vector<double> scores =
        args.score == RouterScore::kSoftmax ? softmax(logits) : sigmoid(logits);
    std::vector<size_t> order(num_experts);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      if (std::isnan(logits[a]) || std::isnan(logits[b])) return !std::isnan(logits[a]);
      return logits[a] > logits[b];
    });
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += scores[order[static_cast<size_t>(j)]];
    for (int64_t j = 0; j < k; ++j) {
      const size_t e = order[static_cast<size_t>(j)];
      const double p = args.renormalize && sum != 0 ? scores[e] / sum : scores[e];
      args.choices.experts.row_as<int32_t>(i)[j] = static_cast<int32_t>(e);
      args.choices.probabilities.row_as<float>(i)[j] = static_cast<float>(p);
    }
  }
}

}  // namespace spb::ops
