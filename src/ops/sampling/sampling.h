// sampling: the next token from the logits of one position.
//
// Order: logit bias -> repetition, frequency and presence penalties -> temperature -> top-k ->
// top-p -> min-p -> draw. Filters keep at least one token and prefer lower ids among equal logits.
// temperature 0 is greedy: the highest logit after bias and penalties, the lowest id among equals.
//   repetition r (1 = off): logit > 0 ? logit / r : logit * r, for every token seen before
//   frequency f, presence c (0 = off): logit -= f * count + (count > 0 ? c : 0)
//   top-k k (0 = off): the k highest; top-p p (1 = off): the smallest set, from the most probable
//   down, with total probability >= p; min-p m (0 = off): probability >= m * that of the best
// Probabilities are softmax in double over what is left. Logits must be finite or -inf; NaN, +inf
// and "no token has a finite logit" are data errors, never a crash; bias and penalties saturate at
// the largest float instead of overflowing.
// Log-probabilities are those of the model: log-softmax of the raw logits, before bias, penalties,
// temperature and filters, so that they can be compared between settings; tokens with a logit of
// -inf are not among the alternatives. Deterministic: the same settings, logits and generator state
// give the same token.
// On a CUDA device the best tokens are listed there (sampling_cuda.h) and drawn from on the host:
// the token is the one that the same logits give on the CPU, always. What the list cannot decide
// for certain is decided on the host by all logits, which takes longer: lists of more than 1024
// tokens, draws without top-k, top-p and min-p, log-probabilities, and sums that lie within 1e-10
// of top_p. Source: common practice (Holtzman et al. 2020 for top-p; Keskar et al. 2019 for
// repetition).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/context.h"
#include "core/rng.h"
#include "core/tensor_view.h"
#include "ops/sampling/sampling_cuda.h"
#include "ops/sampling/sampling_filters.h"

namespace spb::ops {

struct SamplingSettings {
  float temperature = 1.0f;                  // [0, 100]
  int32_t top_k = 0;                         // [0, 2^31)
  float top_p = 1.0f;                        // (0, 1]
  float min_p = 0.0f;                        // [0, 1]
  float repetition_penalty = 1.0f;           // (0, 100]
  float frequency_penalty = 0.0f;            // [-100, 100]
  float presence_penalty = 0.0f;             // [-100, 100]
  int32_t penalty_window = 0;                // how many last tokens the penalties see; 0: all
  std::map<int32_t, float> logit_bias = {};  // added to the logit; -inf forbids the token
  int32_t top_log_probabilities = 0;         // how many alternatives to report, [0, 1024]
  uint64_t seed = 0;
};

// Usage error that names the setting, the range expected and the value. vocab_size bounds the ids
// of logit_bias; 0 skips that check.
void check_sampling_settings(const SamplingSettings& settings, int64_t vocab_size = 0);

struct TokenLogProbability {
  int32_t id = 0;
  float log_probability = 0;
};

struct SampledToken {
  int32_t id = 0;
  float log_probability = 0;             // set when top_log_probabilities > 0
  std::vector<TokenLogProbability> top;  // most probable first
};

// The memory of one sequence: its generator and the tokens that penalties count.
class Sampler {
 public:
  Sampler(SamplingSettings settings, int64_t vocab_size);

  void accept(int32_t id);  // a token that is now part of the text (prompt or output)
  SampledToken sample(std::span<const float> logits);  // does not accept it
  // The same for logits f32, vocab_size elements, on the context's device. Waits for the stream.
  SampledToken sample(Context& context, ConstTensorView logits);

  const SamplingSettings& settings() const { return settings_; }

 private:
  bool penalizes() const;
  void apply_bias(std::vector<float>& logits) const;
  void apply_penalties(std::vector<float>& logits) const;
  double lowest_candidate(double sum_of_weights) const;
  int32_t choose();
  int32_t draw_candidate(double sum_of_weights);
  bool shortlist_pays() const;
  const Shortlist& find_shortlist(Context& context, const float* logits);
  bool cut_nucleus(double sum_of_weights, double sum_of_candidates);
  std::optional<int32_t> choose(const Shortlist& list);
  void report_log_probabilities(std::span<const float> logits, SampledToken& token);

  SamplingSettings settings_;
  int64_t vocab_size_;
  Rng rng_;
  std::vector<int32_t> history_;  // the last penalty_window tokens, a ring; unused without a window
  size_t history_next_ = 0;       // the oldest entry of a full ring
  std::unordered_map<int32_t, int32_t> counts_;  // of the tokens that penalties see
  std::vector<float> adjusted_;                  // the logits after bias and penalties
  CheckedLogits logits_;                         // of the current call; kept for its memory
  Candidates candidates_;
  std::unique_ptr<ShortlistFinder> finder_;  // on the device that was last sampled on
  std::vector<float> on_host_;               // logits that a shortlist could not decide
};

// log(sum(exp(logits))) in double; -inf when every logit is -inf, NaN when one is.
double log_sum_exp(std::span<const float> logits);

}  // namespace spb::ops
