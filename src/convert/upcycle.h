// upcycle: a dense model as a mixture of experts that computes the same at first.
//
// Every routed and every shared expert begins as a copy of the layer's network F. With S shared
// experts and a router whose chosen probabilities sum to r, the layer computes (S + r) F(x); a
// factor undoes that:
//   exact   down projections times 1 / (S + r): equal up to rounding
//   paper   all three matrices times cbrt(1 / (S + r)), as the SpikingBrain report has it: only
//           near, because SiLU is not homogeneous (0.64 % of the network's output at S = 1,
//           r = 1/16)
// r is k/N for a softmax router of N experts with k chosen, k/2 for a sigmoid one, and 1 when the
// probabilities are renormalized. It holds while the router is indifferent, so the router begins
// with logits near 0; they must differ, or every token would go to the first experts.
#pragma once

#include <optional>
#include <vector>

#include "model/weights.h"

namespace spb::convert {

enum class ExpertScaling { kExact, kPaper };

struct UpcycleSettings {
  model::MoeConfig moe = {.num_experts = 16, .num_shared = 1};  // expert_size is the network's
  ExpertScaling scaling = ExpertScaling::kExact;
  double router_deviation = 1e-6;  // standard deviation of a logit for an input of mean square 1
  std::vector<int64_t> layers;     // empty: every layer with a dense network
  uint64_t seed = 1;
};

class Upcycling {
 public:
  // Usage error naming the layer or the setting when the dense model does not allow it.
  Upcycling(const model::ModelConfig& dense, const model::ModelWeights& weights,
            const UpcycleSettings& settings);

  const model::ModelConfig& config() const { return config_; }
  // Views of the dense model, in the places of the tensors that begin as copies of them. A view is
  // smaller than its slot where it is repeated; the routers' are undefined.
  model::ModelWeights& weights() { return weights_; }

  // What the copied values are multiplied by.
  float factor(const model::TensorSlot& slot) const;
  // Rows [begin, end) of a router.
  void fill_router(const model::TensorSlot& slot, int64_t row, float* values) const;

 private:
  model::ModelConfig config_;
  model::ModelWeights weights_;
  UpcycleSettings settings_;
};

}  // namespace spb::convert
