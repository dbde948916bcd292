#include "convert/upcycle.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"

namespace spb::convert {
namespace {

using model::FeedForward;

std::vector<int64_t> dense_layers(const model::ModelConfig& config) {
  std::vector<int64_t> layers;
  for (int64_t i = 0; i < config.num_layers(); ++i) {
    if (config.layer(i).feed_forward == FeedForward::kDense) layers.push_back(i);
  }
  return layers;
}

// What the chosen probabilities of an indifferent router sum to.
double routed_share(const model::MoeConfig& moe) {
  if (moe.renormalize) return 1.0;
  const auto k = static_cast<double>(moe.experts_per_token);
  return moe.score == ops::RouterScore::kSoftmax ? k / static_cast<double>(moe.num_experts)
                                                 : k / 2.0;
}

void check_layers(const model::ModelConfig& dense, const std::vector<int64_t>& layers) {
  check(!layers.empty(), "upcycle: layers: the model has no dense network");
  for (const int64_t layer : layers) {
    check(layer >= 0 && layer < dense.num_layers(),
          "upcycle: layers: expected layers from 0 to {}, got {}", dense.num_layers() - 1, layer);
    check(dense.layer(layer).feed_forward == FeedForward::kDense,
          "upcycle: layer {}: expected a dense network, got {}", layer,
          name(dense.layer(layer).feed_forward));
  }
}

}  // namespace

Upcycling::Upcycling(const model::ModelConfig& dense, const model::ModelWeights& weights,
                     const UpcycleSettings& settings)
    : config_(dense), weights_(weights), settings_(settings) {
  check(dense.layers_with(FeedForward::kMoe) == 0,
        "upcycle: the model is a mixture of experts already");
  check(std::isfinite(settings.router_deviation) && settings.router_deviation > 0,
        "upcycle: router deviation: expected a number > 0, got {}", settings.router_deviation);
  const model::MoeConfig& moe = settings.moe;
  check(moe.num_experts >= 1, "upcycle: number of experts: expected at least 1, got {}",
        moe.num_experts);
  check(moe.experts_per_token >= 1 && moe.experts_per_token <= moe.num_experts,
        "upcycle: experts per token: expected 1 to {}, got {}", moe.num_experts,
        moe.experts_per_token);
  check(moe.num_shared >= 0, "upcycle: shared experts: expected 0 or more, got {}", moe.num_shared);
  if (settings_.layers.empty()) settings_.layers = dense_layers(dense);
  check_layers(dense, settings_.layers);
  config_.moe = moe;
  config_.moe.expert_size = dense.intermediate_size;
  for (const int64_t layer : settings_.layers) {
    config_.layers[static_cast<size_t>(layer)].feed_forward = FeedForward::kMoe;
    model::LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    w.experts = w.dense;
    w.shared = w.dense;
  }
  check_config(config_, "upcycle");
}

float Upcycling::factor(const model::TensorSlot& slot) const {
  const bool expert = slot.role.find("exp") != std::string_view::npos;
  if (!expert || slot.role == "ffn_gate_inp.weight") return 1.0f;
  const double whole =
      1.0 / (static_cast<double>(config_.moe.num_shared) + routed_share(config_.moe));
  if (settings_.scaling == ExpertScaling::kPaper) return static_cast<float>(std::cbrt(whole));
  return slot.role.starts_with("ffn_down") ? static_cast<float>(whole) : 1.0f;
}

void Upcycling::fill_router(const model::TensorSlot& slot, int64_t row, float* values) const {
  const int64_t columns = slot.shape.last();
  Rng rng(settings_.seed + static_cast<uint64_t>(slot.layer * slot.shape.rows() + row));
  const double bound = settings_.router_deviation * std::sqrt(3.0 / static_cast<double>(columns));
  for (int64_t c = 0; c < columns; ++c) {
    values[c] = rng.uniform(static_cast<float>(-bound), static_cast<float>(bound));
  }
}

}  // namespace spb::convert
