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
#include <vector>

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
  std::vector<float> losses;      // of the single predictions, in order
};

// How much larger one perplexity is than another of the same text, in parts of the other. Losses
// are compared prediction by prediction, so what both find hard does not count: the error is far
// smaller than those of the two values. Usage error unless both have as many predictions.
struct PerplexityChange {
  double value = 0;  // with / without - 1
  double standard_error = 0;
};
PerplexityChange compare(const Perplexity& with, const Perplexity& without);

// Tokens [first, first + count) of the text, which go through the model in one call.
struct TextChunk {
  int64_t first = 0;
  int64_t count = 0;
  int64_t position = 0;  // of the first one in its window
};

// The calls that reading `total` tokens takes, in order: every window's tokens but its last, which
// is only predicted, at most `max_chunk` at a time.
std::vector<TextChunk> text_chunks(int64_t total, int64_t window, int64_t max_chunk);

Perplexity measure_perplexity(Context& context, const model::Model& model,
                              std::span<const int32_t> tokens, int64_t window,
                              const model::StateOptions& options,
                              const std::function<void(int64_t done, int64_t total)>& progress = {},
                              const std::atomic<bool>* stop = nullptr,
                              const model::ForwardHooks& hooks = {});

}  // namespace spb::engine
