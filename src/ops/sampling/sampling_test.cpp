#include "ops/sampling/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/error.h"
#include "core/test_tensors.h"

namespace spb::ops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_logits(Rng& rng, int64_t count, float scale) {
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits) x = scale * rng.normal();
  return logits;
}

struct PlainCandidate {
  int32_t id;
  float logit;
  double weight;
};

// The contract word by word: full sorts, fresh containers, penalties from the whole history.
class PlainSampler {
 public:
  PlainSampler(const SamplingSettings& settings, int64_t vocab)
      : s_(settings), vocab_(vocab), rng_(settings.seed) {}

  void accept(int32_t id) { history_.push_back(id); }

  int32_t sample(std::vector<float> logits) {
    adjust(logits);
    std::vector<PlainCandidate> sorted;
    for (int32_t id = 0; id < vocab_; ++id) {
      if (logits[static_cast<size_t>(id)] > -kInf) {
        sorted.push_back({id, logits[static_cast<size_t>(id)], 0.0});
      }
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.logit > b.logit; });
    if (s_.temperature == 0) return sorted.front().id;
    filter(sorted);
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return a.id < b.id; });
    double left = rng_.uniform() * total(sorted);
    for (const PlainCandidate& c : sorted) {
      left -= c.weight;
      if (left < 0) return c.id;
    }
    return sorted.back().id;
  }

 private:
  static double total(const std::vector<PlainCandidate>& candidates) {
    double sum = 0;
    for (const PlainCandidate& c : candidates) sum += c.weight;
    return sum;
  }

  void adjust(std::vector<float>& logits) const {
    for (const auto& [id, bias] : s_.logit_bias) logits[static_cast<size_t>(id)] += bias;
    const size_t window =
        s_.penalty_window > 0 ? static_cast<size_t>(s_.penalty_window) : history_.size();
    std::map<int32_t, int> counts;
    for (size_t i = history_.size() - std::min(window, history_.size()); i < history_.size(); ++i) {
      ++counts[history_[i]];
    }
    for (const auto& [id, count] : counts) {
      float& logit = logits[static_cast<size_t>(id)];
      const double scaled =
          logit > 0 ? logit / double{s_.repetition_penalty} : logit * double{s_.repetition_penalty};
      logit = static_cast<float>(scaled - double{s_.frequency_penalty} * count -
                                 double{s_.presence_penalty});
    }
  }

  void filter(std::vector<PlainCandidate>& sorted) const {
    if (s_.top_k > 0 && sorted.size() > static_cast<size_t>(s_.top_k)) {
      sorted.resize(static_cast<size_t>(s_.top_k));
    }
    for (PlainCandidate& c : sorted) {
      c.weight = std::exp((double{c.logit} - sorted.front().logit) / double{s_.temperature});
    }
    if (s_.top_p < 1) {
      const double wanted = total(sorted) * double{s_.top_p};
      double reached = 0;
      size_t kept = 0;
      while (kept < sorted.size() && reached < wanted) reached += sorted[kept++].weight;
      sorted.resize(kept);
    }
    while (sorted.back().weight < double{s_.min_p}) sorted.pop_back();
  }

  SamplingSettings s_;
  int64_t vocab_;
  Rng rng_;
  std::vector<int32_t> history_;
};

SamplingSettings random_settings(Rng& rng, int64_t vocab) {
  SamplingSettings s;
  s.seed = rng.next();
  if (rng.below(3) > 0) s.temperature = rng.uniform(0.05f, 3.0f);
  if (rng.below(2) == 0) s.top_k = static_cast<int32_t>(1 + rng.below(vocab + 10));
  if (rng.below(2) == 0) s.top_p = rng.uniform(0.01f, 0.999f);
  if (rng.below(3) == 0) s.min_p = rng.uniform(0.0f, 0.5f);
  if (rng.below(2) == 0) s.repetition_penalty = rng.uniform(0.7f, 1.8f);
  if (rng.below(2) == 0) s.frequency_penalty = rng.uniform(-0.5f, 0.5f);
  if (rng.below(2) == 0) s.presence_penalty = rng.uniform(-0.5f, 0.5f);
  if (rng.below(2) == 0) s.penalty_window = static_cast<int32_t>(1 + rng.below(20));
  for (int64_t i = rng.below(4); i > 0; --i) {
    s.logit_bias[static_cast<int32_t>(rng.below(vocab))] =
        rng.below(2) == 0 ? -kInf : rng.uniform(-3.0f, 3.0f);
  }
  return s;
}

TEST(Sampling, AgreesWithThePlainSamplerForAnySettings) {
  Rng rng(1);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t vocab = 5 + rng.below(300);
    const SamplingSettings settings = random_settings(rng, vocab);
    Sampler sampler(settings, vocab);
    PlainSampler plain(settings, vocab);
    for (int step = 0; step < 40; ++step) {
      std::vector<float> logits = random_logits(rng, vocab, 2.0f);
      for (float& x : logits) x = rng.below(10) == 0 ? -kInf : std::round(x * 8) / 8;  // ties
      logits[4] = 1.0f;
      if (settings.logit_bias.contains(4)) logits[3] = logits[2] = logits[1] = logits[0] = 1.0f;
      const int32_t id = sampler.sample(logits).id;
      ASSERT_EQ(id, plain.sample(logits)) << "trial " << trial << ", step " << step;
      sampler.accept(id);
      plain.accept(id);
    }
  }
}

TEST(Sampling, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -1.0f, -kInf, 0.5f};
  SamplingSettings settings;
  settings.temperature = 0.7f;
  settings.seed = 7;
  Sampler sampler(settings, 6);
  constexpr int kDraws = 200000;
  std::vector<int> counts(6);
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits).id)];
  double total = 0;
  for (const float x : logits) total += std::exp(double{x} / double{0.7f});
  for (size_t i = 0; i < 6; ++i) {
    const double p = std::exp(double{logits[i]} / double{0.7f}) / total;
    EXPECT_NEAR(counts[i], p * kDraws, 5 * std::sqrt(kDraws * p * (1 - p))) << i;
  }
}

TEST(Sampling, GreedyTakesTheLowestOfEqualTokensAndDrawsNothing) {
  SamplingSettings settings;
  settings.temperature = 0;
  Sampler sampler(settings, 100);
  std::vector<float> logits(100, -2.0f);
  logits[17] = logits[63] = 5.0f;
  EXPECT_EQ(sampler.sample(logits).id, 17);
  settings.logit_bias[17] = -0.5f;
  EXPECT_EQ(Sampler(settings, 100).sample(logits).id, 63);
}

TEST(Sampling, SameSeedSameTextOtherSeedOtherText) {
  Rng rng(3);
  const std::vector<float> logits = random_logits(rng, 1000, 1.0f);
  const auto text = [&](uint64_t seed) {
    SamplingSettings settings;
    settings.seed = seed;
    Sampler sampler(settings, 1000);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.sample(logits).id);
    return ids;
  };
  EXPECT_EQ(text(5), text(5));
  EXPECT_NE(text(5), text(6));
}

std::vector<int32_t> first_ids(const std::vector<PlainCandidate>& candidates, size_t count) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < count; ++i) ids.push_back(candidates[i].id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<int32_t> ids_of(const Candidates& candidates) {
  return {candidates.ids().begin(), candidates.ids().end()};
}

class SamplingFilters : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, SamplingFilters, ::testing::ValuesIn(test::isa_levels()));

// The selection by bins against a full sort, on sizes where bins matter and with many equal logits.
TEST_P(SamplingFilters, KeepWhatAFullSortKeeps) {
  Rng rng(4);
  for (int trial = 0; trial < 100; ++trial) {
    const int64_t count = 1 + rng.below(4000);
    const float step = trial % 2 == 0 ? 0.25f : 1e-4f;
    std::vector<float> logits(static_cast<size_t>(count));
    for (float& x : logits) x = std::round(rng.normal() / step) * step;
    if (trial % 10 == 0) logits[0] = -std::numeric_limits<float>::max();  // squeezes the bins
    const float highest = *std::max_element(logits.begin(), logits.end());
    std::vector<PlainCandidate> sorted;
    double total = 0;
    for (int32_t id = 0; id < count; ++id) {
      const float logit = logits[static_cast<size_t>(id)];
      sorted.push_back({id, logit, std::exp(double{logit} - highest)});
      total += sorted.back().weight;
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.logit > b.logit; });
    CheckedLogits checked;
    checked.assign(logits);
    EXPECT_EQ(checked.highest_id(), sorted.front().id);
    EXPECT_NEAR(checked.sum_of_weights(1.0), total, 1e-12 * total);

    Candidates best;
    const int64_t k = 1 + rng.below(count);
    best.collect(checked, checked.reached_by(k));
    EXPECT_GE(static_cast<int64_t>(best.ids().size()), k);
    best.keep_best(k);
    EXPECT_EQ(ids_of(best), first_ids(sorted, static_cast<size_t>(k)));

    best.collect(checked, -HUGE_VAL);
    best.weigh(highest, 1.0);
    const double target = rng.uniform() * total;
    double reached = 0;
    size_t kept = 0;
    while (kept == 0 || reached < target) reached += sorted[kept++].weight;
    best.keep_weight(target);
    EXPECT_EQ(ids_of(best), first_ids(sorted, kept));
  }
}

TEST_P(SamplingFilters, WeightsAreExponentialsInDouble) {
  std::vector<float> logits;
  for (float x = 0; x > -800; x -= 0.37f) logits.push_back(x);
  logits.push_back(-kInf);
  CheckedLogits checked;
  for (const double temperature : {1.0, 0.3, 7.0}) {
    checked.assign(logits);
    Candidates all;
    all.collect(checked, -HUGE_VAL);
    all.weigh(0.0, temperature);
    ASSERT_EQ(all.ids().size(), logits.size() - 1);
    for (size_t i = 0; i < all.ids().size(); ++i) {
      const double expected = std::exp(double{logits[i]} / temperature);
      // The rounding of the exponent counts |exponent| times.
      const double error = 2e-15 + 3e-16 * std::fabs(logits[i] / temperature);
      EXPECT_NEAR(all.weights()[i], expected, error * expected + 1e-307) << logits[i];
    }
  }
}

TEST(Sampling, LogProbabilitiesAreThoseOfTheModel) {
  Rng rng(5);
  std::vector<float> logits = random_logits(rng, 500, 3.0f);
  logits[3] = -kInf;
  SamplingSettings settings;
  settings.temperature = 0.01f;
  settings.top_k = 1;
  settings.top_log_probabilities = 7;
  settings.logit_bias[42] = 1000.0f;  // changes the choice, not the report
  const SampledToken token = Sampler(settings, 500).sample(logits);
  EXPECT_EQ(token.id, 42);
  EXPECT_NEAR(token.log_probability, logits[42] - log_sum_exp(logits), 1e-5);
  ASSERT_EQ(token.top.size(), 7u);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_NEAR(token.top[i].log_probability, sorted[i] - log_sum_exp(logits), 1e-5);
    EXPECT_EQ(logits[static_cast<size_t>(token.top[i].id)], sorted[i]);
  }
  settings.top_log_probabilities = 1024;
  EXPECT_EQ(Sampler(settings, 500).sample(logits).top.size(), 499u);  // one is impossible
}

TEST(Sampling, LogSumExp) {
  EXPECT_DOUBLE_EQ(log_sum_exp(std::vector<float>{1000.0f, 1000.0f}), 1000.0 + std::log(2.0));
  EXPECT_DOUBLE_EQ(log_sum_exp(std::vector<float>{-1000.0f, -kInf}), -1000.0);
  EXPECT_EQ(log_sum_exp(std::vector<float>{-kInf, -kInf}), -HUGE_VAL);
  EXPECT_EQ(log_sum_exp({}), -HUGE_VAL);
  EXPECT_EQ(log_sum_exp(std::vector<float>{0.0f, kInf}), HUGE_VAL);
  EXPECT_TRUE(std::isnan(log_sum_exp(std::vector<float>{0.0f, kNaN, kInf})));
}

template <typename Body>
std::string message_of(ErrorKind kind, Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  return "accepted";
}

TEST(Sampling, BadLogitsAreDataErrors) {
  SamplingSettings settings;
  settings.logit_bias[1] = -kInf;
  Sampler sampler(settings, 40);
  const auto message = [&](size_t at, float value, float others) {
    std::vector<float> logits(40, others);
    logits[at] = value;
    return message_of(ErrorKind::kData, [&] { sampler.sample(logits); });
  };
  EXPECT_EQ(message(1, kInf, 0), "sampling: logits[1]: expected a finite number or -inf, got inf");
  EXPECT_EQ(message(39, kNaN, 0),
            "sampling: logits[39]: expected a finite number or -inf, got nan");
  EXPECT_EQ(message(0, -kInf, -kInf), "sampling: logits: expected a finite one, got only -inf");
  EXPECT_EQ(message(1, 5.0f, -kInf), "sampling: logits: expected a finite one, got only -inf");
  EXPECT_EQ(message(0, 5.0f, -kInf), "accepted");
  EXPECT_EQ(message_of(ErrorKind::kUsage, [&] { sampler.sample(std::vector<float>(39)); }),
            "sampling: logits: expected 40 (the vocabulary), got 39");
  EXPECT_EQ(message_of(ErrorKind::kUsage, [&] { sampler.accept(40); }),
            "sampling: accepted token: expected 0 to 39, got 40");
}

TEST(Sampling, ExtremeLogitsAndSettingsSurvive) {
  const float largest = std::numeric_limits<float>::max();
  for (const float temperature : {0.0f, 1e-45f, 1e-10f, 100.0f}) {
    SamplingSettings settings;
    settings.temperature = temperature;
    settings.top_p = 0.5f;
    settings.repetition_penalty = 1e-30f;
    settings.frequency_penalty = -100;
    settings.logit_bias[0] = largest;
    Sampler sampler(settings, 3);
    sampler.accept(0);
    sampler.accept(1);
    const std::vector<float> logits{largest, largest / 2, -largest};
    const int32_t id = sampler.sample(logits).id;
    EXPECT_TRUE(id == 0 || id == 1);
  }
}

TEST(SamplingSettings, ImpossibleOnesAreNamed) {
  const auto message = [](auto change) {
    SamplingSettings settings;
    change(settings);
    return message_of(ErrorKind::kUsage, [&] { check_sampling_settings(settings, 10); });
  };
  using S = SamplingSettings;
  EXPECT_EQ(message([](S& s) { s.temperature = -1; }),
            "sampling: temperature: expected 0 to 100, got -1");
  EXPECT_EQ(message([](S& s) { s.temperature = kNaN; }),
            "sampling: temperature: expected 0 to 100, got nan");
  EXPECT_EQ(message([](S& s) { s.top_k = -1; }),
            "sampling: top_k: expected 0 to 2147483647, got -1");
  EXPECT_EQ(message([](S& s) { s.top_p = 0; }),
            "sampling: top_p: expected more than 0 and at most 1, got 0");
  EXPECT_EQ(message([](S& s) { s.min_p = 1.5f; }), "sampling: min_p: expected 0 to 1, got 1.5");
  EXPECT_EQ(message([](S& s) { s.repetition_penalty = 0; }),
            "sampling: repetition_penalty: expected more than 0 and at most 100, got 0");
  EXPECT_EQ(message([](S& s) { s.frequency_penalty = kInf; }),
            "sampling: frequency_penalty: expected -100 to 100, got inf");
  EXPECT_EQ(message([](S& s) { s.presence_penalty = -101; }),
            "sampling: presence_penalty: expected -100 to 100, got -101");
  EXPECT_EQ(message([](S& s) { s.penalty_window = -5; }),
            "sampling: penalty_window: expected 0 to 2147483647, got -5");
  EXPECT_EQ(message([](S& s) { s.top_log_probabilities = 2000; }),
            "sampling: top_log_probabilities: expected 0 to 1024, got 2000");
  EXPECT_EQ(message([](S& s) { s.logit_bias[10] = 1; }),
            "sampling: logit_bias: expected token ids from 0 to 9, got 10");
  EXPECT_EQ(message([](S& s) { s.logit_bias[2] = kNaN; }),
            "sampling: logit_bias of token 2: expected a finite number or -inf, got nan");
  EXPECT_EQ(message([](S& s) { s.logit_bias[2] = -kInf; }), "accepted");
}

}  // namespace
}  // namespace spb::ops
