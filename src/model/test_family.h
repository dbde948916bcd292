// Configurations of models with experts and sink tokens, for tests of the model on every device.
#pragma once

#include <functional>
#include <vector>

#include "model/config.h"

namespace spb::model {

// What makes a test_config() a member of the family.
struct FamilyMember {
  const char* name;
  std::function<void(ModelConfig&)> change;
  // Every expert is chosen, or there is none: roundings change no choice.
  bool steady = true;
};

inline void make_moe(ModelConfig& c, int64_t experts, int64_t k, int64_t shared) {
  for (LayerConfig& layer : c.layers) layer.feed_forward = FeedForward::kMoe;
  c.moe = {.num_experts = experts, .experts_per_token = k, .num_shared = shared, .expert_size = 32};
}

inline void make_like_76b(ModelConfig& c, int64_t expert_size) {
  c.layers.clear();
  for (int i = 1; i <= 7; ++i) {
    c.layers.push_back({{Mixer::kLinear, i % 7 == 0 ? Mixer::kFull : Mixer::kWindow},
                        i <= 3 || i == 5 ? FeedForward::kDense : FeedForward::kMoe});
  }
  c.moe = {.num_experts = 16, .num_shared = 1, .expert_size = expert_size};
  c.sink_tokens = 9;
  c.feature_map = ops::FeatureMap::kSigmoid;
  c.tied_gate = true;
}

inline std::vector<FamilyMember> sparse_members() {
  return {
      {"sinks", [](ModelConfig& c) { c.sink_tokens = 5; }},
      {"sinks_and_full_attention",
       [](ModelConfig& c) {
         c.layers = uniform_layers(2, Mixer::kFull);
         c.sink_tokens = 3;
       }},
      {"all_experts", [](ModelConfig& c) { make_moe(c, 3, 3, 1); }},
      {"experts", [](ModelConfig& c) { make_moe(c, 16, 1, 1); }, false},
      {"experts_only", [](ModelConfig& c) { make_moe(c, 4, 3, 0); }, false},
      {"renormalized_sigmoid_experts",
       [](ModelConfig& c) {
         make_moe(c, 5, 2, 2);
         c.moe.score = ops::RouterScore::kSigmoid;
         c.moe.renormalize = true;
       },
       false},
  };
}

}  // namespace spb::model
