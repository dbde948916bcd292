#include "ops/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"

namespace spb::ops {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// What biases and penalties make of a finite logit stays finite.
float clamp_finite(double logit) {
  return static_cast<float>(std::clamp<double>(logit, -kLargest, kLargest));
}

}  // namespace

Sampler::Sampler(SamplingSettings settings, int64_t vocab_size)
    : settings_(std::move(settings)), vocab_size_(vocab_size), rng_(settings_.seed) {
  check(vocab_size > 0 && vocab_size <= std::numeric_limits<int32_t>::max(),
        "sampling: vocab_size: expected 1 to 2147483647, got {}", vocab_size);
  check_sampling_settings(settings_, vocab_size);
}

bool Sampler::penalizes() const {
  return settings_.repetition_penalty != 1.0f || settings_.frequency_penalty != 0.0f ||
         settings_.presence_penalty != 0.0f;
}

void Sampler::accept(int32_t id) {
  check(id >= 0 && id < vocab_size_, "sampling: accepted token: expected 0 to {}, got {}",
        vocab_size_ - 1, id);
  if (!penalizes()) return;
  const int32_t count = ++counts_[id];
  if (finder_) finder_->set_count(id, count);
  if (settings_.penalty_window == 0) return;
  if (history_.size() < static_cast<size_t>(settings_.penalty_window)) {
    history_.push_back(id);
    return;
  }
  const auto oldest = counts_.find(std::exchange(history_[history_next_], id));
  const int32_t left = --oldest->second;
  if (finder_) finder_->set_count(oldest->first, left);
  if (left == 0) counts_.erase(oldest);
  history_next_ = (history_next_ + 1) % history_.size();
}

void Sampler::apply_bias(std::vector<float>& logits) const {
  for (const auto& [id, bias] : settings_.logit_bias) {
    float& logit = logits[static_cast<size_t>(id)];
    const bool forbidden = std::isinf(bias) || std::isinf(logit);
    logit = forbidden ? -HUGE_VALF : clamp_finite(static_cast<double>(logit) + bias);
  }
}

void Sampler::apply_penalties(std::vector<float>& logits) const {
  const double repetition = settings_.repetition_penalty;
  for (const auto& [id, count] : counts_) {
    float& logit = logits[static_cast<size_t>(id)];
    if (std::isinf(logit)) continue;
    const double scaled = logit > 0 ? logit / repetition : logit * repetition;
    logit = clamp_finite(scaled - static_cast<double>(settings_.frequency_penalty) * count -
                         settings_.presence_penalty);
  }
}

// The lowest logit that can pass the filters, or less: all below may be left out unseen.
double Sampler::lowest_candidate(double sum_of_weights) const {
  if (settings_.top_k > 0) return logits_.reached_by(settings_.top_k);
  // The tokens whose weight is below the share of one token in what top-p leaves out have, all
  // together, less than that; min-p compares with the weight 1 of the best.
  const double tail = (1.0 - settings_.top_p) * sum_of_weights / static_cast<double>(vocab_size_);
  const double weight = std::max<double>(tail, settings_.top_p < 1 ? 0.0 : settings_.min_p);
  constexpr double kRounding = 1e-9;
  return logits_.highest() + settings_.temperature * (std::log(weight) - kRounding);
}

int32_t Sampler::choose() {
  if (settings_.temperature == 0) return logits_.highest_id();
  const double temperature = settings_.temperature;
  const bool whole = settings_.top_k == 0;  // top-p sees the whole vocabulary
  const double sum = whole && settings_.top_p < 1 ? logits_.sum_of_weights(temperature) : 0.0;
  candidates_.collect(logits_, lowest_candidate(sum));
  if (!whole) candidates_.keep_best(settings_.top_k);
  const double sum_of_candidates = candidates_.weigh(logits_.highest(), temperature);
  return draw_candidate(whole ? sum : sum_of_candidates);
}

// After top-k: candidates have their weights.
int32_t Sampler::draw_candidate(double sum_of_weights) {
  if (settings_.top_p < 1) candidates_.keep_weight(settings_.top_p * sum_of_weights);
  if (settings_.min_p > 0) candidates_.drop_below(settings_.min_p);
  return candidates_.draw(rng_);
}

void Sampler::report_log_probabilities(std::span<const float> logits, SampledToken& token) {
  logits_.assign(logits);
  const double total = log_sum_exp(logits);
  const auto log_probability = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - total);
  };
  token.log_probability = log_probability(token.id);
  candidates_.collect(logits_, logits_.reached_by(settings_.top_log_probabilities));
  candidates_.keep_best(settings_.top_log_probabilities);
  for (const int32_t id : candidates_.ids_best_first()) {
    token.top.push_back({id, log_probability(id)});
  }
}

SampledToken Sampler::sample(std::span<const float> logits) {
  check(static_cast<int64_t>(logits.size()) == vocab_size_,
        "sampling: logits: expected {} (the vocabulary), got {}", vocab_size_, logits.size());
  logits_.assign(logits);
  if (!settings_.logit_bias.empty() || !counts_.empty()) {
    adjusted_.assign(logits.begin(), logits.end());
    apply_bias(adjusted_);
    apply_penalties(adjusted_);
    logits_.assign(adjusted_);
  }
  SampledToken token;
  token.id = choose();
  if (settings_.top_log_probabilities > 0) report_log_probabilities(logits, token);
  return token;
}

}  // namespace spb::ops
