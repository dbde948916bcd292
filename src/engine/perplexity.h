// Perplexity of a text: how surprised the model is, per token.
//
// The tokens are cut into windows of `window` that do not overlap; every window starts from an
// empty state, and each of its tokens but the first is predicted from those before it:
//   perplexity = exp(-1/n sum log p(token_i | window start .. token_{i-1}))
// A last window of a single token predicts nothing and is left out.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "core/context.h"
#include "model/activity.h"
#include "model/model.h"
#include "model/state.h"

namespace spb::engine {

struct Perplexity {
  double negative_log_likelihood = 0;  // sum, in nats
  int64_t predictions = 0;
  double value() const;
  double standard_error() const;  // of value(), from the spread of the single predictions
  double squares = 0;             // sum of squared single losses
};

Perplexity measure_perplexity(Context& context, const model::Model& model,
                              std::span<const int32_t> tokens, int64_t window,
                              const model::StateOptions& options,
                              const std::function<void(int64_t done, int64_t total)>& progress = {},
                              const std::atomic<bool>* stop = nullptr,
                              const model::ForwardHooks& hooks = {});

}  // namespace spb::engine
