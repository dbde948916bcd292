#include "cli/experts_loads.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/moe/moe_dispatch.h"

namespace spb::cli {
namespace {

// Adds the scores of one token, made to add up to 1: sigmoid scores do not by themselves.
void add_scores(const float* logits, ops::RouterScore score, std::vector<double>& sums) {
  const size_t count = sums.size();
  const double largest = static_cast<double>(*std::max_element(logits, logits + count));
  std::vector<double> scores(count);
  for (size_t e = 0; e < count; ++e) {
    const auto logit = static_cast<double>(logits[e]);
    scores[e] = score == ops::RouterScore::kSoftmax ? std::exp(logit - largest)
                                                    : 1 / (1 + std::exp(-logit));
  }
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (size_t e = 0; e < count; ++e) sums[e] += scores[e] / sum;
}

}  // namespace

int64_t LayerLoads::choices() const {
  return std::accumulate(assigned.begin(), assigned.end(), int64_t{0});
}

LoadFigures load_figures(const LayerLoads& loads) {
  const std::span<const int64_t> assigned = loads.assigned;
  LoadFigures figures;
  figures.hottest = std::max_element(assigned.begin(), assigned.end()) - assigned.begin();
  figures.coldest = std::min_element(assigned.begin(), assigned.end()) - assigned.begin();
  figures.unused = std::count(assigned.begin(), assigned.end(), 0);
  figures.imbalance = ops::load_imbalance(assigned);
  for (int64_t e = 0; e < std::ssize(assigned); ++e) {
    const double share = ops::load_share(assigned, e);
    if (share > 0) figures.entropy -= share * std::log2(share);
    figures.balance_loss += share * loads.score_sums[static_cast<size_t>(e)];
  }
  figures.effective = std::exp2(figures.entropy);
  figures.balance_loss *=
      static_cast<double>(std::ssize(assigned)) / static_cast<double>(loads.tokens);
  figures.mean_probability = loads.probability_sum / static_cast<double>(loads.choices());
  return figures;
}

// Layers come in ascending order, over and over.
LayerLoads& LoadRecorder::of_layer(int64_t layer) {
  const auto at =
      std::lower_bound(layers_.begin(), layers_.end(), layer,
                       [](const LayerLoads& l, int64_t index) { return l.layer < index; });
  if (at != layers_.end() && at->layer == layer) return *at;
  const auto count = static_cast<size_t>(moe_.num_experts);
  return *layers_.insert(at,
                         {layer, 0, std::vector<int64_t>(count), std::vector<double>(count), 0});
}

void LoadRecorder::on_choices(int64_t layer, const model::ExpertChoices& choices) {
  LayerLoads& loads = of_layer(layer);
  const Shape& shape = choices.experts.shape();
  loads.tokens += shape[0];
  for (int64_t i = 0; i < shape[0]; ++i) {
    add_scores(choices.logits.row_as<float>(i), moe_.score, loads.score_sums);
    const auto* experts = choices.experts.row_as<int32_t>(i);
    const auto* probabilities = choices.probabilities.row_as<float>(i);
    for (int64_t j = 0; j < shape[1]; ++j) {
      ++loads.assigned[static_cast<size_t>(experts[j])];
      loads.probability_sum += static_cast<double>(probabilities[j]);
    }
  }
}

}  // namespace spb::cli
