#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "model/forward.h"
#include "ops/sampling/sampling.h"

namespace spb::engine {
namespace {

// Adds the losses of predicting `targets` from the rows of `logits`.
void add_losses(ConstTensorView logits, std::span<const int32_t> targets, Perplexity& sum) {
  const auto vocab = static_cast<size_t>(logits.shape().last());
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::span row(logits.row_as<float>(static_cast<int64_t>(i)), vocab);
    const double loss = ops::log_sum_exp(row) - row[static_cast<size_t>(targets[i])];
    check_data(std::isfinite(loss), "perplexity: the model gave a logit that is not finite");
    sum.negative_log_likelihood += loss;
    sum.squares += loss * loss;
    ++sum.predictions;
    sum.losses.push_back(static_cast<float>(loss));
  }
}

}  // namespace

double Perplexity::value() const {
  return std::exp(negative_log_likelihood / static_cast<double>(predictions));
}

double Perplexity::standard_error() const {
  const auto n = static_cast<double>(predictions);
  const double mean = negative_log_likelihood / n;
  const double variance = std::max(0.0, squares / n - mean * mean);
  return value() * std::sqrt(variance / n);
}

PerplexityChange compare(const Perplexity& with, const Perplexity& without) {
  check(with.losses.size() == without.losses.size() && !with.losses.empty(),
        "perplexity: predictions: expected {}, got {}", without.losses.size(), with.losses.size());
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < with.losses.size(); ++i) {
    const double difference = static_cast<double>(with.losses[i]) - without.losses[i];
    sum += difference;
    squares += difference * difference;
  }
  const auto n = static_cast<double>(with.losses.size());
  const double mean = sum / n;
  const double variance = std::max(0.0, squares / n - mean * mean);
  return {std::expm1(mean), std::exp(mean) * std::sqrt(variance / n)};
}

std::vector<TextChunk> text_chunks(int64_t total, int64_t window, int64_t max_chunk) {
  check(window >= 2, "perplexity: window: expected at least 2 tokens, got {}", window);
  check(total >= 2, "perplexity: text: expected at least 2 tokens, got {}", total);
  check(max_chunk >= 1, "perplexity: chunk: expected at least 1 token, got {}", max_chunk);
  std::vector<TextChunk> chunks;
  for (int64_t start = 0; start + 1 < total; start += window) {
    const int64_t end = std::min(start + window, total) - 1;
    for (int64_t at = start; at < end; at += max_chunk) {
      chunks.push_back({at, std::min(max_chunk, end - at), at - start});
    }
  }
  return chunks;
}

Perplexity measure_perplexity(Context& context, const model::Model& model,
                              std::span<const int32_t> tokens, int64_t window,
                              const model::StateOptions& options,
                              const std::function<void(int64_t, int64_t)>& progress,
                              const std::atomic<bool>* stop, const model::ForwardHooks& hooks) {
  const auto total = static_cast<int64_t>(tokens.size());
  model::SequenceState state(model, options);
  Tensor logits(DType::kF32, Shape{state.max_chunk(), model.config().vocab_size});
  Perplexity sum;
  for (const TextChunk& chunk : text_chunks(total, window, state.max_chunk())) {
    if (stop != nullptr && stop->load()) fail(ErrorKind::kInterrupted, "perplexity: interrupted");
    if (chunk.position == 0) state.clear();
    const auto first = static_cast<size_t>(chunk.first);
    const auto count = static_cast<size_t>(chunk.count);
    const model::SequenceSlice slice{tokens.subspan(first, count), &state, model::Logits::kAll};
    const TensorView rows = logits.view().rows(0, chunk.count);
    model::forward(context, model, {&slice, 1}, rows, hooks);
    add_losses(rows, tokens.subspan(first + 1, count), sum);
    if (progress) progress(chunk.first + chunk.count, total);
  }
  return sum;
}

}  // namespace spb::engine
