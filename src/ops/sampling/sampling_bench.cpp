#include <benchmark/benchmark.h>

#include <algorithm>

#include "ops/sampling/sampling.h"

namespace spb::ops {
namespace {

constexpr int64_t kVocab = 151936;

// `spread`: standard deviation of the logits; small ones give flat distributions, the hard case.
void sample(benchmark::State& state, const SamplingSettings& settings, float spread) {
  Rng rng(1);
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = spread * rng.normal();
  Sampler sampler(settings, kVocab);
  SamplingSettings best_only = settings;
  best_only.top_k = 1;
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  if (Sampler(best_only, kVocab).sample(logits).id != best) {
    return state.SkipWithError("top-k 1 is not the highest logit");
  }
  for (int i = 0; i < 1000; ++i) sampler.accept(static_cast<int32_t>(rng.below(kVocab)));
  for (auto _ : state) benchmark::DoNotOptimize(sampler.sample(logits).id);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK_CAPTURE(sample, greedy, {.temperature = 0}, 3.0f);
BENCHMARK_CAPTURE(sample, temperature, {}, 3.0f);
BENCHMARK_CAPTURE(sample, top_k_40, {.top_k = 40}, 3.0f);
BENCHMARK_CAPTURE(sample, top_p, {.top_p = 0.95f}, 3.0f);
BENCHMARK_CAPTURE(sample, top_p_flat, {.top_p = 0.95f}, 0.1f);
BENCHMARK_CAPTURE(sample, usual, {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f}, 3.0f);
BENCHMARK_CAPTURE(sample, penalties, {.top_p = 0.95f, .repetition_penalty = 1.1f}, 3.0f);
BENCHMARK_CAPTURE(sample, log_probabilities, {.temperature = 0, .top_log_probabilities = 5}, 3.0f);

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
