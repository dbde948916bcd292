// Activity: looking at what goes into the projections while a model runs.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/tensor_view.h"
#include "spike/threshold/threshold.h"

namespace spb::model {

// Where activations enter matrix products, and can become spikes.
enum class Site {
  kMixerInput,         // queries, keys, values and gate
  kMixerOutput,        // output projection
  kQuery,              // queries of softmax mixers after RoPE; a row is one head of one token
  kFeedForwardInput,   // gate and up
  kFeedForwardOutput,  // down
  kKey,                // keys and values of softmax mixers: never spikes, but rounded to 8 bits
  kValue,
};
inline constexpr int kSites = 7;

// "mixer_in", "mixer_out", "query", "ffn_in", "ffn_out", "key", "value"
std::string_view name(Site site);

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

struct ForwardHooks {
  ActivityObserver* observer = nullptr;
  // Every spike product is executed once more as a spike train, with additions alone; an error
  // naming layer and site if a bit differs. Very slow.
  bool verify_spikes = false;
};

}  // namespace spb::model
