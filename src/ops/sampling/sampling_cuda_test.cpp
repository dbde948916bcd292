#include <cmath>

#include "core/error.h"
#include "core/test_cuda.h"
#include "ops/sampling/sampling.h"

namespace spb::ops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using SamplingCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Logits, SamplingCuda, testing::Values(DType::kF32), test::dtype_name);

SamplingSettings random_settings(Rng& rng, int64_t vocab) {
  SamplingSettings s;
  s.seed = rng.next();
  if (rng.below(5) > 0) s.temperature = rng.uniform(0.05f, 3.0f);
  if (rng.below(5) == 0) s.temperature = 0;
  if (rng.below(2) == 0)
    s.top_k = static_cast<int32_t>(1 + rng.below(rng.below(2) == 0 ? 60 : vocab + 10));
  if (rng.below(2) == 0) s.top_p = rng.uniform(0.01f, 0.999f);
  if (rng.below(8) == 0) s.top_p = 0.99999994f;
  if (rng.below(3) == 0) s.min_p = rng.uniform(0.0f, 0.5f);
  if (rng.below(2) == 0) s.repetition_penalty = rng.uniform(0.7f, 1.8f);
  if (rng.below(2) == 0) s.frequency_penalty = rng.uniform(-0.5f, 0.5f);
  if (rng.below(2) == 0) s.presence_penalty = rng.uniform(-0.5f, 0.5f);
  if (rng.below(2) == 0) s.penalty_window = static_cast<int32_t>(1 + rng.below(20));
  for (int64_t i = rng.below(4); i > 0; --i) {
    s.logit_bias[static_cast<int32_t>(rng.below(vocab))] =
        rng.below(2) == 0 ? -kInf : rng.uniform(-3.0f, 3.0f);
  }
  if (rng.below(10) == 0) s.top_log_probabilities = static_cast<int32_t>(rng.below(8));
  return s;
}

// Logits of many kinds: steep, flat, full of equal ones, impossible ones, far from zero.
class LogitSource {
 public:
  LogitSource(Rng& rng, int64_t vocab) : rng_(rng), normal_(static_cast<size_t>(vocab)) {
    for (float& x : normal_) x = rng.normal();
  }

  std::vector<float> next() {
    constexpr float kScales[] = {0.01f, 0.5f, 3.0f, 8.0f, 1e30f};
    const float scale = kScales[rng_.below(5)];
    const float offset = rng_.below(3) == 0 ? rng_.uniform(-1000.0f, 1000.0f) : 0.0f;
    const bool rounded = rng_.below(3) == 0;
    const bool gaps = rng_.below(3) == 0;
    const auto turn = static_cast<size_t>(rng_.below(static_cast<int64_t>(normal_.size())));
    std::vector<float> logits(normal_.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      float x = scale * normal_[(i + turn) % normal_.size()];
      if (rounded) x = std::round(x * 4) / 4;
      logits[i] = gaps && i % 3 == 1 ? -kInf : x + offset;
    }
    return logits;
  }

 private:
  Rng& rng_;
  std::vector<float> normal_;
};

Tensor on_card(Context& context, const std::vector<float>& logits) {
  const auto size = static_cast<int64_t>(logits.size());
  return to_device(context, ConstTensorView(logits.data(), Shape{size}));
}

std::string outcome(const std::function<SampledToken()>& sample, SampledToken& token) {
  try {
    token = sample();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// `steps` tokens of one text. Returns how many were compared, to say that they were.
int compare_text(Context& context, Rng& rng, LogitSource& source, int64_t vocab, int steps) {
  const SamplingSettings settings = random_settings(rng, vocab);
  Sampler host(settings, vocab);
  Sampler device(settings, vocab);
  for (int64_t i = rng.below(50); i > 0; --i) {
    const auto id = static_cast<int32_t>(rng.below(std::min<int64_t>(vocab, 30)));
    host.accept(id);
    device.accept(id);
  }
  for (int step = 0; step < steps; ++step) {
    const std::vector<float> logits = source.next();
    const Tensor there = on_card(context, logits);
    SampledToken expected, token;
    const std::string refusal = outcome([&] { return host.sample(logits); }, expected);
    EXPECT_EQ(outcome([&] { return device.sample(context, there); }, token), refusal);
    EXPECT_EQ(token.id, expected.id)
        << "of " << vocab << ", step " << step << ": temperature " << settings.temperature
        << ", top_k " << settings.top_k << ", top_p " << settings.top_p << ", min_p "
        << settings.min_p;
    EXPECT_EQ(token.log_probability, expected.log_probability);
    EXPECT_EQ(token.top.size(), expected.top.size());
    if (testing::Test::HasFailure()) return step;
    host.accept(expected.id);
    device.accept(token.id);
  }
  return steps;
}

TEST_P(SamplingCuda, GivesTheTokenOfTheCpuForAnySettings) {
  Rng rng(1);
  for (const auto& [vocab, texts] : std::vector<std::pair<int64_t, int>>{
           {1, 10}, {7, 60}, {1000, 100}, {1025, 50}, {32003, 80}, {152064, 30}}) {
    LogitSource source(rng, vocab);
    for (int text = 0; text < texts; ++text) {
      ASSERT_EQ(compare_text(context(), rng, source, vocab, 10), 10);
    }
  }
}

// The cases that the list decides, at the size where it matters.
TEST_P(SamplingCuda, UsualSettingsOverALargeVocabulary) {
  constexpr int64_t kVocab = 152064;
  Rng rng(2);
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = 3.0f * rng.normal();
  for (int i = 0; i < 40; ++i) logits[static_cast<size_t>(rng.below(kVocab))] += 12.0f;
  const Tensor there = on_card(context(), logits);
  for (const SamplingSettings& settings :
       {SamplingSettings{.temperature = 0}, SamplingSettings{.top_k = 40},
        SamplingSettings{.top_k = 1024}, SamplingSettings{.top_p = 0.9f},
        SamplingSettings{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f},
        SamplingSettings{.temperature = 0.7f, .min_p = 0.05f}}) {
    Sampler host(settings, kVocab);
    Sampler device(settings, kVocab);
    for (int draw = 0; draw < 100; ++draw) {
      ASSERT_EQ(device.sample(context(), there).id, host.sample(logits).id)
          << "top_k " << settings.top_k << ", top_p " << settings.top_p << ", draw " << draw;
    }
  }
}

TEST_P(SamplingCuda, EqualLogitsGiveTheLowestId) {
  std::vector<float> logits(5000, -2.0f);
  logits[4711] = logits[63] = 5.0f;
  Sampler sampler({.temperature = 0}, 5000);
  EXPECT_EQ(sampler.sample(context(), on_card(context(), logits)).id, 63);
  const std::vector<float> zeros{-1.0f, -0.0f, 0.0f};
  Sampler small({.temperature = 0}, 3);
  EXPECT_EQ(small.sample(context(), on_card(context(), zeros)).id, 1);
}

TEST_P(SamplingCuda, BadLogitsAreDataErrors) {
  SamplingSettings settings;
  settings.top_k = 5;
  settings.logit_bias[1] = -kInf;
  Sampler sampler(settings, 4000);
  const auto message = [&](size_t at, float value, float others) {
    std::vector<float> logits(4000, others);
    logits[at] = value;
    SampledToken token;
    const Tensor there = on_card(context(), logits);
    return outcome([&] { return sampler.sample(context(), there); }, token);
  };
  EXPECT_EQ(message(1, kInf, 0), "sampling: logits[1]: expected a finite number or -inf, got inf");
  EXPECT_EQ(message(3999, kNaN, 0),
            "sampling: logits[3999]: expected a finite number or -inf, got nan");
  EXPECT_EQ(message(0, -kInf, -kInf), "sampling: logits: expected a finite one, got only -inf");
  EXPECT_EQ(message(1, 5.0f, -kInf), "sampling: logits: expected a finite one, got only -inf");
  EXPECT_EQ(message(0, 5.0f, -kInf), "");
  SampledToken token;
  const Tensor few = on_card(context(), std::vector<float>(39));
  EXPECT_EQ(
      outcome([&] { return sampler.sample(context(), few); }, token),
      "sampling: logits: expected f32, 4000 contiguous elements (the vocabulary), got f32 [39]");
}

}  // namespace
}  // namespace spb::ops
