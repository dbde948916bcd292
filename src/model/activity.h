// Activity: looking at what goes into the projections while a model runs.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "model/spike_config.h"
#include "spike/threshold/threshold.h"

namespace spb::model {

// Called during forward() by the thread that called it, in the order of the layers. Rows are in the
// order of the tokens of the call; of the last layer's later sites only those whose logits are
// wanted. Shared experts use the sites of the feed-forward network; routed ones have none.
class ActivityObserver {
 public:
  virtual ~ActivityObserver() = default;
  // x [rows, channels] f32, before it becomes spikes if it does.
  virtual void on_activations(int64_t layer, Site site, ConstTensorView x) = 0;
  virtual void on_spikes(int64_t layer, Site site, const spike::SpikeCounts& counts) = 0;
};

// What the router of a layer decided. Valid during the call only.
struct ExpertChoices {
  ConstTensorView logits;         // [tokens, experts] f32
  ConstTensorView experts;        // [tokens, k] i32, the most probable first
  ConstTensorView probabilities;  // [tokens, k] f32: what the experts' outputs are multiplied by
};

// Called like an ActivityObserver, for every layer that has experts.
class ExpertObserver {
 public:
  virtual ~ExpertObserver() = default;
  virtual void on_choices(int64_t layer, const ExpertChoices& choices) = 0;
};

struct ForwardHooks {
  ActivityObserver* observer = nullptr;
  // Every spike product is executed once more as a spike train, with additions alone; an error
  // naming layer and site if a bit differs. Very slow.
  bool verify_spikes = false;
  // Instead of what the model's config says about spikes. A place can be silenced (k = 0) only
  // where the model keeps weights for it that are no codes: LoadOptions::float_products. Sink
  // tokens are read when the model is loaded, with its own config.
  const SpikeConfig* spikes = nullptr;
  ExpertObserver* expert_observer = nullptr;
};

}  // namespace spb::model
