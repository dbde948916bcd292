#include "ops/sampling/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace spb::ops {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// Candidates with a smaller weight than e^-60 of the best are left out: a sum in double over a
// million of them does not change in its last bit.
constexpr double kNegligible = 60.0;

// The highest logit. Data error on NaN, on +inf, and if all are -inf.
float highest_logit(std::span<const float> logits) {
  constexpr size_t kStrip = 16;  // independent maxima, so that the processor overlaps them
  std::array<float, kStrip> best;
  best.fill(-HUGE_VALF);
  bool invalid = false;
  size_t i = 0;
  for (; i + kStrip <= logits.size(); i += kStrip) {
    for (size_t j = 0; j < kStrip; ++j) {
      const float x = logits[i + j];
      invalid |= !(x <= kLargest);
      best[j] = x > best[j] ? x : best[j];
    }
  }
  for (; i < logits.size(); ++i) {
    invalid |= !(logits[i] <= kLargest);
    best[0] = std::max(best[0], logits[i]);
  }
  if (invalid) {
    const auto wrong =
        std::find_if(logits.begin(), logits.end(), [](float x) { return !(x <= kLargest); });
    fail(ErrorKind::kData, "sampling: logits[{}]: expected a finite number or -inf, got {}",
         wrong - logits.begin(), *wrong);
  }
  const float highest = *std::max_element(best.begin(), best.end());
  check_data(highest > -HUGE_VALF, "sampling: logits: expected a finite one, got only -inf");
  return highest;
}

// What biases and penalties make of a finite logit stays finite.
float clamp_finite(double logit) {
  return static_cast<float>(std::clamp<double>(logit, -kLargest, kLargest));
}

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  if (logits.empty()) return -HUGE_VAL;
  const double highest = *std::max_element(logits.begin(), logits.end());
  if (std::isinf(highest)) return highest;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - highest);
  return highest + std::log(sum);
}

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
  ++counts_[id];
  if (settings_.penalty_window == 0) return;
  if (history_.size() < static_cast<size_t>(settings_.penalty_window)) {
    history_.push_back(id);
    return;
  }
  const auto oldest = counts_.find(std::exchange(history_[history_next_], id));
  if (--oldest->second == 0) counts_.erase(oldest);
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

void Sampler::collect_candidates(std::span<const float> logits, double lowest) {
  candidates_.resize(logits.size());
  size_t count = 0;
  for (size_t i = 0; i < logits.size(); ++i) {  // branch-free: the condition is unpredictable
    candidates_[count] = {static_cast<int32_t>(i), logits[i], 0.0};
    count += logits[i] >= lowest ? 1 : 0;
  }
  candidates_.resize(count);
}

int32_t Sampler::choose(std::span<const float> logits, float highest) {
  if (settings_.temperature == 0) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), highest) - logits.begin());
  }
  const double temperature = settings_.temperature;
  collect_candidates(logits, highest - kNegligible * temperature);
  if (settings_.top_k > 0) keep_best_count(candidates_, settings_.top_k);
  for (SamplingCandidate& c : candidates_) {
    c.weight = std::exp((static_cast<double>(c.logit) - highest) / temperature);
  }
  if (settings_.top_p < 1) keep_best_share(candidates_, settings_.top_p);
  if (settings_.min_p > 0) {  // the best has weight 1
    std::erase_if(candidates_,
                  [&](const SamplingCandidate& c) { return c.weight < settings_.min_p; });
  }
  return draw(candidates_, rng_);
}

void Sampler::report_log_probabilities(std::span<const float> logits, SampledToken& token) {
  const double total = log_sum_exp(logits);
  const auto log_probability = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - total);
  };
  token.log_probability = log_probability(logits[static_cast<size_t>(token.id)]);
  collect_candidates(logits, -kLargest);
  keep_best_count(candidates_, settings_.top_log_probabilities);
  std::stable_sort(
      candidates_.begin(), candidates_.end(),
      [](const SamplingCandidate& a, const SamplingCandidate& b) { return a.logit > b.logit; });
  for (const SamplingCandidate& c : candidates_) {
    token.top.push_back({c.id, log_probability(c.logit)});
  }
}

SampledToken Sampler::sample(std::span<const float> logits) {
  check(static_cast<int64_t>(logits.size()) == vocab_size_,
        "sampling: logits: expected {} (the vocabulary), got {}", vocab_size_, logits.size());
  const float highest = highest_logit(logits);  // checks them, also when they are adjusted below
  SampledToken token;
  if (settings_.logit_bias.empty() && counts_.empty()) {
    token.id = choose(logits, highest);
  } else {
    adjusted_.assign(logits.begin(), logits.end());
    apply_bias(adjusted_);
    apply_penalties(adjusted_);
    token.id = choose(adjusted_, highest_logit(adjusted_));
  }
  if (settings_.top_log_probabilities > 0) report_log_probabilities(logits, token);
  return token;
}

}  // namespace spb::ops
