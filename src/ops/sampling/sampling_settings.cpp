#include <cmath>
#include <limits>

#include "core/error.h"
#include "ops/sampling/sampling.h"

namespace spb::ops {
namespace {

template <typename T>
void check_range(const char* name, T value, T low, T high) {
  // Written so that NaN fails.
  check(value >= low && value <= high, "sampling: {}: expected {} to {}, got {}", name, low, high,
        value);
}

void check_above_zero(const char* name, float value, float high) {
  check(value > 0 && value <= high, "sampling: {}: expected more than 0 and at most {}, got {}",
        name, high, value);
}

}  // namespace

void check_sampling_settings(const SamplingSettings& settings, int64_t vocab_size) {
  constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
  check_range("temperature", settings.temperature, 0.0f, 100.0f);
  check_range("top_k", settings.top_k, 0, kMaxInt);
  check_above_zero("top_p", settings.top_p, 1.0f);
  check_range("min_p", settings.min_p, 0.0f, 1.0f);
  check_above_zero("repetition_penalty", settings.repetition_penalty, 100.0f);
  check_range("frequency_penalty", settings.frequency_penalty, -100.0f, 100.0f);
  check_range("presence_penalty", settings.presence_penalty, -100.0f, 100.0f);
  check_range("penalty_window", settings.penalty_window, 0, kMaxInt);
  check_range("top_log_probabilities", settings.top_log_probabilities, 0, 1024);
  for (const auto& [id, bias] : settings.logit_bias) {
    check(id >= 0 && (vocab_size == 0 || id < vocab_size),
          "sampling: logit_bias: expected token ids from 0 to {}, got {}",
          vocab_size == 0 ? int64_t{kMaxInt} : vocab_size - 1, id);
    check(std::isfinite(bias) || bias == -HUGE_VALF,
          "sampling: logit_bias of token {}: expected a finite number or -inf, got {}", id, bias);
  }
}

}  // namespace spb::ops
