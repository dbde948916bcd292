// Sampling from what a CUDA device lists, and when the list is enough.
#include <algorithm>

#include "core/error.h"
#include "ops/sampling/sampling.h"

namespace spb::ops {
namespace {

// Sums of the same weights in another order differ by less than this, relative to the sum: 2^-53
// for each of at most 2^18 additions in a row, and as much for the exponentials.
constexpr double kRounding = 1e-10;

}  // namespace

bool Sampler::shortlist_pays() const {
  const SamplingSettings& s = settings_;
  if (s.top_log_probabilities > 0) return false;
  if (s.temperature == 0 || vocab_size_ <= Shortlist::kCapacity) return true;
  if (s.top_k > 0) return s.top_k <= Shortlist::kCapacity;
  return s.top_p < 1 || s.min_p > 0;
}

const Shortlist& Sampler::find_shortlist(Context& context, const float* logits) {
  const SamplingSettings& s = settings_;
  if (!finder_ || finder_->device() != context.device()) {
    finder_ = std::make_unique<ShortlistFinder>(context.device(), vocab_size_);
    if (!s.logit_bias.empty()) finder_->set_bias(s.logit_bias);
    for (const auto& [id, count] : counts_) finder_->set_count(id, count);
  }
  ShortlistArgs args;
  args.logits = logits;
  args.penalties = {s.repetition_penalty, s.frequency_penalty, s.presence_penalty};
  args.temperature = s.temperature;
  if (s.temperature > 0) {
    args.count = s.top_k > 0 ? std::min(s.top_k, Shortlist::kCapacity) : Shortlist::kCapacity;
    args.sum = s.top_k == 0 && s.top_p < 1;
  }
  return finder_->find(context, args);
}

// top-p among the candidates, which are the best of all tokens. False unless it keeps the same
// whatever the order in which the weights are added up.
bool Sampler::cut_nucleus(double sum_of_weights, double sum_of_candidates) {
  const double target = settings_.top_p * sum_of_weights;
  if (sum_of_candidates < target * (1 + kRounding)) return false;
  candidates_.keep_weight(target * (1 + kRounding));
  const size_t most = candidates_.ids().size();
  candidates_.keep_weight(target * (1 - kRounding));
  return candidates_.ids().size() == most;
}

// None: the list does not decide it, and nothing was drawn.
std::optional<int32_t> Sampler::choose(const Shortlist& list) {
  if (settings_.temperature == 0) return list.highest_id;
  const auto count = static_cast<size_t>(list.count);
  candidates_.assign({list.ids, count}, {list.logits, count});
  if (settings_.top_k > 0) {
    if (!list.complete() && list.count < settings_.top_k) return std::nullopt;
    candidates_.keep_best(settings_.top_k);
    return draw_candidate(candidates_.weigh(list.highest, settings_.temperature));
  }
  const double sum = candidates_.weigh(list.highest, settings_.temperature);
  const double min_p = settings_.min_p;
  if (settings_.top_p < 1) {
    if (!cut_nucleus(list.sum_of_weights, sum)) return std::nullopt;
  } else if (!list.complete()) {
    // min-p alone: tokens that are not listed weigh no more than any that is.
    const std::span<const double> weights = candidates_.weights();
    const auto lowest = std::min_element(weights.begin(), weights.end());
    if (lowest == weights.end() || *lowest >= min_p * (1 - kRounding)) return std::nullopt;
  }
  if (min_p > 0) candidates_.drop_below(min_p);
  return candidates_.draw(rng_);
}

SampledToken Sampler::sample(Context& context, ConstTensorView logits) {
  check(logits.defined() && logits.dtype() == DType::kF32 && logits.contiguous() &&
            logits.shape().elements() == vocab_size_,
        "sampling: logits: expected f32, {} contiguous elements (the vocabulary), got {} {}",
        vocab_size_, name(logits.dtype()), logits.shape());
  const float* data = logits.as<float>();
  const auto size = static_cast<size_t>(vocab_size_);
  if (!context.device().is_cuda()) return sample(std::span(data, size));
  if (shortlist_pays()) {
    const Shortlist& list = find_shortlist(context, data);
    const std::optional<int32_t> id = list.valid != 0 ? choose(list) : std::nullopt;
    if (id) return {*id, 0, {}};
  }
  on_host_.resize(size);
  context.stream().copy_to_host(on_host_.data(), data, logits.bytes());
  return sample(on_host_);
}

}  // namespace spb::ops
