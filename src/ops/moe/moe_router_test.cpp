#include "ops/moe/moe_router.h"

#include <gtest/gtest.h>

#include <set>

#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

constexpr RouterScore kScores[] = {RouterScore::kSoftmax, RouterScore::kSigmoid};

// Choices whose memory starts as what no router may leave behind.
struct Chosen {
  Chosen(int64_t tokens, int64_t k)
      : storage(DType::kI32, Shape{tokens, k}),
        experts(storage.view()),
        probabilities(tokens, k, 3) {
    std::fill_n(storage.as<int32_t>(), tokens * k, -77);
  }
  MoeChoices view() const { return {experts, probabilities.view()}; }
  int32_t expert(int64_t i, int64_t j) const { return experts.row_as<int32_t>(i)[j]; }
  float probability(int64_t i, int64_t j) const { return probabilities.at(i, j); }

  Tensor storage;
  TensorView experts;
  StridedMatrix probabilities;
};

void expect_same_choices(const Chosen& a, const Chosen& b, int64_t tokens, int64_t k) {
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      ASSERT_EQ(a.expert(i, j), b.expert(i, j)) << i << ", " << j;
      const float want = b.probability(i, j);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(a.probability(i, j))) << i << ", " << j;
      } else {
        ASSERT_NEAR(a.probability(i, j), want, 1e-6f * want) << i << ", " << j;
      }
    }
  }
}

// Random logits with many ties and a few that are not finite.
StridedMatrix hostile_logits(Rng& rng, int64_t tokens, int64_t num_experts) {
  const float inf = std::numeric_limits<float>::infinity();
  const float odd[] = {inf, -inf, test::kPoison, 1e38f, -1e38f, 0.0f, -0.0f, 1e-40f};
  StridedMatrix logits(tokens, num_experts, 2);
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t e = 0; e < num_experts; ++e) {
      logits.row(i)[e] = 0.5f * static_cast<float>(rng.below(7)) - 1.0f;
      if (rng.below(6) == 0) logits.row(i)[e] = odd[rng.below(8)];
    }
  }
  return logits;
}

void expect_reference_choices(Context& context, const StridedMatrix& logits, int64_t k) {
  const int64_t tokens = logits.view().shape()[0];
  for (const RouterScore score : kScores) {
    for (const bool renormalize : {false, true}) {
      const Chosen got(tokens, k), want(tokens, k);
      moe_route(context, {logits.view(), got.view(), score, renormalize});
      moe_route_reference({logits.view(), want.view(), score, renormalize});
      expect_same_choices(got, want, tokens, k);
      EXPECT_TRUE(got.probabilities.gaps_untouched());
    }
  }
}

TEST(MoeRoute, AgreesWithTheReference) {
  Context context(3);
  Rng rng(1);
  for (const int64_t num_experts : {1, 2, 5, 16, 129}) {
    for (const int64_t k : {int64_t{1}, (num_experts + 1) / 2, num_experts}) {
      const int64_t tokens = 1 + rng.below(70);
      StridedMatrix logits(tokens, num_experts, 1);
      expect_reference_choices(context, logits.fill_normal(rng, 3.0f), k);
      expect_reference_choices(context, hostile_logits(rng, tokens, num_experts), k);
    }
  }
}

TEST(MoeRoute, ChoosesDistinctExpertsWhateverTheLogits) {
  Context context(2);
  Rng rng(2);
  const int64_t tokens = 200, num_experts = 9, k = 6;
  const StridedMatrix logits = hostile_logits(rng, tokens, num_experts);
  const Chosen got(tokens, k);
  moe_route(context, {logits.view(), got.view()});
  for (int64_t i = 0; i < tokens; ++i) {
    std::set<int32_t> seen;
    for (int64_t j = 0; j < k; ++j) seen.insert(got.expert(i, j));
    EXPECT_EQ(static_cast<int64_t>(seen.size()), k);
    EXPECT_GE(*seen.begin(), 0);
    EXPECT_LT(*seen.rbegin(), num_experts);
  }
}

TEST(MoeRoute, EqualLogitsGoToTheLowerExpertAndRoundedScoresDoNotTie) {
  Context context(1);
  StridedMatrix logits(3, 4);
  const float rows[3][4] = {{2, 2, 2, 2}, {0, 5, 5, 1}, {60, 61, -900, -901}};
  for (int64_t i = 0; i < 3; ++i) std::copy_n(rows[i], 4, logits.row(i));
  for (const RouterScore score : kScores) {
    const Chosen got(3, 4);
    moe_route(context, {logits.view(), got.view(), score});
    const int32_t want[3][4] = {{0, 1, 2, 3}, {1, 2, 3, 0}, {1, 0, 2, 3}};
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 4; ++j) EXPECT_EQ(got.expert(i, j), want[i][j]) << i << ", " << j;
    }
  }
}

TEST(MoeRoute, SumsOfProbabilities) {
  Context context(2);
  Rng rng(4);
  StridedMatrix logits(40, 12);
  logits.fill_normal(rng, 4.0f);
  const auto sum = [](const Chosen& c, int64_t i, int64_t k) {
    double total = 0;
    for (int64_t j = 0; j < k; ++j) total += static_cast<double>(c.probability(i, j));
    return total;
  };
  const Chosen all(40, 12), top(40, 3), renormalized(40, 3);
  moe_route(context, {logits.view(), all.view()});
  moe_route(context, {logits.view(), top.view()});
  moe_route(context, {logits.view(), renormalized.view(), RouterScore::kSigmoid, true});
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_NEAR(sum(all, i, 12), 1.0, 1e-6);
    EXPECT_LT(sum(top, i, 3), 1.0);
    EXPECT_NEAR(sum(renormalized, i, 3), 1.0, 1e-6);
    for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(top.probability(i, j), all.probability(i, j));
  }
}

TEST(MoeRoute, InfiniteLogitsShareOneAndNotANumberStaysVisible) {
  Context context(1);
  const float inf = std::numeric_limits<float>::infinity();
  StridedMatrix logits(4, 4);
  const float rows[4][4] = {
      {0, inf, 1, inf}, {-inf, -inf, -inf, -inf}, {0, test::kPoison, 1, -inf}, {0, -inf, -inf, 0}};
  for (int64_t i = 0; i < 4; ++i) std::copy_n(rows[i], 4, logits.row(i));
  const Chosen got(4, 4);
  moe_route(context, {logits.view(), got.view()});
  EXPECT_EQ(got.expert(0, 0), 1);
  EXPECT_EQ(got.probability(0, 1), 0.5f);
  EXPECT_EQ(got.probability(0, 2), 0.0f);
  EXPECT_EQ(got.probability(1, 3), 0.25f);
  EXPECT_EQ(got.expert(2, 3), 1);
  EXPECT_TRUE(std::isnan(got.probability(2, 0)));
  EXPECT_EQ(got.probability(3, 0), 0.5f);
  moe_route(context, {logits.view(), got.view(), RouterScore::kSigmoid});
  EXPECT_EQ(got.probability(2, 1), 0.5f);
  EXPECT_TRUE(std::isnan(got.probability(2, 3)));
}

TEST(MoeRoute, RenormalizingZeroScoresLeavesThemZero) {
  Context context(1);
  StridedMatrix logits(1, 3);
  std::fill_n(logits.row(0), 3, -std::numeric_limits<float>::infinity());
  const Chosen got(1, 2);
  moe_route(context, {logits.view(), got.view(), RouterScore::kSigmoid, true});
  EXPECT_EQ(got.probability(0, 0), 0.0f);
  EXPECT_EQ(got.probability(0, 1), 0.0f);
}

TEST(MoeRoute, ThreadsGiveTheSameBits) {
  Rng rng(5);
  StridedMatrix logits(1000, 16);
  logits.fill_normal(rng);
  Context one(1);
  const Chosen want(1000, 2);
  moe_route(one, {logits.view(), want.view()});
  for (const int threads : {2, 3, 8}) {
    Context context(threads);
    const Chosen got(1000, 2);
    moe_route(context, {logits.view(), got.view()});
    EXPECT_TRUE(test::same_bits(got.experts, want.experts));
    EXPECT_TRUE(test::same_bits(got.probabilities.view(), want.probabilities.view()));
  }
}

TEST(MoeRoute, RefusesWhatDoesNotFit) {
  Context context(1);
  const StridedMatrix logits(2, 4);
  const auto message = [&](ConstTensorView l, const MoeChoices& choices) -> std::string {
    try {
      moe_route(context, {l, choices});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const Chosen one(2, 1), five(2, 5), none(2, 0), longer(3, 1), empty(0, 1);
  EXPECT_EQ(message(logits.view(), five.view()),
            "moe_route: experts: expected [N, k] with k from 1 to 4, got [2, 5]");
  EXPECT_EQ(message(logits.view(), none.view()),
            "moe_route: experts: expected [N, k] with k from 1 to 4, got [2, 0]");
  EXPECT_EQ(message(logits.view(), longer.view()),
            "moe_route: experts: expected i32 [2, 1], got i32 [3, 1]");
  EXPECT_EQ(message(logits.view(), {one.experts, five.probabilities.view()}),
            "moe_route: probabilities: expected f32 [2, 1], got f32 [2, 5]");
  EXPECT_EQ(message(ConstTensorView(), one.view()),
            "moe_route: logits: expected [N, E] with E > 0, got []");
  EXPECT_EQ(message(logits.view(), {one.experts, logits.view().rows(0, 2)}),
            "moe_route: probabilities: expected f32 [2, 1], got f32 [2, 4]");
  EXPECT_EQ(message(StridedMatrix(0, 4).view(), empty.view()), "accepted");
}

}  // namespace
}  // namespace spb::ops
