#include "ops/moe/moe_dispatch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

// Choices written by hand: experts and probabilities of one token after the other.
struct Written {
  Written(int64_t k, std::vector<int32_t> e, std::vector<float> p)
      : experts(std::move(e)), probabilities(std::move(p)), per_token(k) {
    if (probabilities.empty()) probabilities.assign(experts.size(), 0.5f);
  }
  MoeChoices view() {
    const Shape shape{static_cast<int64_t>(experts.size()) / per_token, per_token};
    return {TensorView(experts.data(), shape), TensorView(probabilities.data(), shape)};
  }

  std::vector<int32_t> experts;
  std::vector<float> probabilities;
  int64_t per_token;
};

Written random_choices(Rng& rng, int64_t tokens, int64_t k, int64_t num_experts) {
  Written choices(k, {}, {});
  for (int64_t c = 0; c < tokens * k; ++c) {
    choices.experts.push_back(static_cast<int32_t>(rng.below(num_experts)));
    choices.probabilities.push_back(0.1f * static_cast<float>(rng.below(10)));
  }
  return choices;
}

std::vector<int64_t> list(std::span<const int64_t> values) {
  return {values.begin(), values.end()};
}

using List = std::vector<int64_t>;

TEST(MoePlan, GroupsByExpertAndKeepsTheOrderOfTokens) {
  Context context(1);
  Written choices(2, {2, 0, 0, 2, 2, 3, 0, 2}, {});
  const MoePlan plan = moe_plan(context, {choices.view(), 4});
  EXPECT_EQ(list(plan.offsets), (List{0, 3, 3, 7, 8}));
  EXPECT_EQ(list(plan.token_of), (List{0, 1, 3, 0, 1, 2, 3, 2}));
  EXPECT_EQ(list(plan.row_of), (List{3, 0, 1, 4, 5, 7, 2, 6}));
  EXPECT_EQ(list(plan.assigned), (List{3, 0, 4, 1}));
  EXPECT_EQ(list(plan.dropped), (List{0, 0, 0, 0}));
  EXPECT_EQ(plan.num_experts(), 4);
}

TEST(MoePlan, PaddingFillsSegmentsAndCountsNowhere) {
  Context context(1);
  Written choices(1, {2, 0, 2, 2, 2, 2}, {});
  const MoePlan plan = moe_plan(context, {choices.view(), 4, 4});
  EXPECT_EQ(list(plan.offsets), (List{0, 4, 4, 12, 12}));
  EXPECT_EQ(list(plan.token_of), (List{1, -1, -1, -1, 0, 2, 3, 4, 5, -1, -1, -1}));
  EXPECT_EQ(list(plan.assigned), (List{1, 0, 5, 0}));
}

TEST(MoePlan, CapacityDropsTheLastOrTheLeastProbable) {
  Context context(1);
  Written choices(1, {1, 1, 0, 1, 1, 1, 0, 1}, {.3f, .9f, .1f, .9f, .2f, .9f, .2f, .5f});
  // ceil(1 * 8 / 2) = 4 of the six stay.
  const MoePlan first = moe_plan(context, {choices.view(), 2, 1, 1.0, DropRule::kByPosition});
  EXPECT_EQ(list(first.offsets), (List{0, 2, 6}));
  EXPECT_EQ(list(first.token_of), (List{2, 6, 0, 1, 3, 4}));
  EXPECT_EQ(list(first.row_of), (List{2, 3, 0, 4, 5, -1, 1, -1}));
  EXPECT_EQ(list(first.assigned), (List{2, 6}));
  EXPECT_EQ(list(first.dropped), (List{0, 2}));
  const MoePlan best = moe_plan(context, {choices.view(), 2, 1, 1.0, DropRule::kByProbability});
  EXPECT_EQ(list(best.token_of), (List{2, 6, 1, 3, 5, 7}));
  EXPECT_EQ(list(best.dropped), (List{0, 2}));
  // ceil(0.5 * 8 / 2) = 2: of equal probabilities the first stay.
  const MoePlan two = moe_plan(context, {choices.view(), 2, 1, 0.5, DropRule::kByProbability});
  EXPECT_EQ(list(two.token_of), (List{2, 6, 1, 3}));
}

TEST(MoePlan, NotANumberIsDroppedFirst) {
  Context context(1);
  const float nan = test::kPoison;
  Written choices(1, {0, 0, 0, 0}, {nan, 0.0f, nan, -0.0f});
  const auto kept = [&](double factor) {
    return list(
        moe_plan(context, {choices.view(), 1, 1, factor, DropRule::kByProbability}).token_of);
  };
  EXPECT_EQ(kept(0.5), (List{1, 3}));
  EXPECT_EQ(kept(0.75), (List{0, 1, 3}));
}

TEST(MoePlan, CapacityIsTheRoundedUpShare) {
  Context context(1);
  const auto kept = [&](double factor, int64_t tokens) {
    Written choices(1, std::vector<int32_t>(static_cast<size_t>(tokens), 0), {});
    return moe_plan(context, {choices.view(), 10, 1, factor}).rows();
  };
  EXPECT_EQ(kept(1.0, 100), 10);
  EXPECT_EQ(kept(1.0, 101), 11);
  EXPECT_EQ(kept(1.1, 100), 11);  // 110.00000000000001 / 10 in doubles
  EXPECT_EQ(kept(1e-9, 100), 1);
  EXPECT_EQ(kept(1e300, 100), 100);
  EXPECT_EQ(kept(HUGE_VAL, 100), 100);
  EXPECT_EQ(kept(0.0, 100), 100);
}

void expect_consistent(const MoePlan& plan, Written& choices, int64_t align) {
  const int64_t k = choices.per_token;
  const auto total = static_cast<int64_t>(choices.experts.size());
  EXPECT_EQ(std::accumulate(plan.assigned.begin(), plan.assigned.end(), int64_t{0}), total);
  int64_t placed = 0;
  for (int64_t c = 0; c < total; ++c) {
    const int64_t row = plan.row_of[static_cast<size_t>(c)];
    if (row < 0) continue;
    ++placed;
    const auto e = static_cast<size_t>(choices.experts[static_cast<size_t>(c)]);
    EXPECT_EQ(plan.token_of[static_cast<size_t>(row)], c / k);
    EXPECT_GE(row, plan.offsets[e]);
    EXPECT_LT(row, plan.offsets[e + 1]);
  }
  EXPECT_EQ(placed, total - std::accumulate(plan.dropped.begin(), plan.dropped.end(), int64_t{0}));
  for (size_t e = 0; e < plan.assigned.size(); ++e) {
    const int64_t rows = plan.offsets[e + 1] - plan.offsets[e];
    const int64_t filled = plan.assigned[e] - plan.dropped[e];
    EXPECT_EQ(rows % align, 0);
    EXPECT_TRUE(filled <= rows && rows < filled + align) << filled << " in " << rows;
    int64_t before = -1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = plan.token_of[static_cast<size_t>(plan.offsets[e] + r)];
      EXPECT_EQ(token < 0, r >= filled);
      EXPECT_TRUE(token < 0 || token >= before);
      before = token;
    }
  }
}

TEST(MoePlan, IsConsistentForRandomChoices) {
  Context context(1);
  Rng rng(3);
  for (int round = 0; round < 200; ++round) {
    const Arena::Scope scope(context.arena());
    const int64_t num_experts = 1 + rng.below(20);
    const int64_t k = 1 + rng.below(std::min<int64_t>(num_experts, 4));
    const int64_t align = 1 + rng.below(20);
    Written choices = random_choices(rng, rng.below(60), k, num_experts);
    const double factor = 0.25 * static_cast<double>(rng.below(6));
    for (const DropRule rule : {DropRule::kByPosition, DropRule::kByProbability}) {
      const MoePlan plan = moe_plan(context, {choices.view(), num_experts, align, factor, rule});
      expect_consistent(plan, choices, align);
      if (HasFailure()) return;
    }
  }
}

TEST(MoePlan, AcceptsNoTokensAndOne) {
  Context context(2);
  Written none(2, {}, {});
  const MoePlan empty = moe_plan(context, {none.view(), 3, 16, 1.0});
  EXPECT_EQ(list(empty.offsets), (List{0, 0, 0, 0}));
  EXPECT_EQ(empty.rows(), 0);
  StridedMatrix x(0, 5);
  moe_gather(context, {empty, x.view(), StridedMatrix(0, 5).view()});
  moe_scatter(context, {empty, x.view(), StridedMatrix(0, 2).view(), StridedMatrix(0, 5).view()});
  Written one(1, {2}, {});
  EXPECT_EQ(list(moe_plan(context, {one.view(), 3}).offsets), (List{0, 0, 0, 1}));
}

TEST(MoePlan, RefusesWhatDoesNotFit) {
  Context context(1);
  const auto message = [&](const MoePlanArgs& args) -> std::string {
    try {
      moe_plan(context, args);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  Written two(2, {0, 1, 1, 0}, {}), high(1, {0, 3}, {}), negative(1, {0, -1}, {});
  EXPECT_EQ(message({two.view(), 1}),
            "moe_plan: experts: expected [N, k] with k from 1 to 1, got [2, 2]");
  EXPECT_EQ(message({two.view(), 0}), "moe_plan: number of experts: expected at least 1, got 0");
  EXPECT_EQ(message({high.view(), 3}), "moe_plan: experts[1, 0]: expected 0 to 2, got 3");
  EXPECT_EQ(message({negative.view(), 3}), "moe_plan: experts[1, 0]: expected 0 to 2, got -1");
  EXPECT_EQ(message({two.view(), 2, 0}), "moe_plan: align: expected 1 to 65536, got 0");
  EXPECT_EQ(message({two.view(), 2, 1, -1.0}),
            "moe_plan: capacity factor: expected at least 0, got -1");
  EXPECT_EQ(message({two.view(), 2, 1, std::nan("")}),
            "moe_plan: capacity factor: expected at least 0, got nan");
  EXPECT_EQ(message({{two.view().experts, high.view().probabilities}, 2}),
            "moe_plan: probabilities: expected f32 [2, 2], got f32 [2, 1]");
}

TEST(MoeLoad, SharesAndImbalance) {
  const List balanced{4, 4, 4}, one{0, 12, 0}, none{0, 0};
  EXPECT_EQ(load_imbalance(balanced), 1.0);
  EXPECT_EQ(load_imbalance(one), 3.0);
  EXPECT_EQ(load_imbalance(none), 0.0);
  EXPECT_EQ(load_imbalance({}), 0.0);
  EXPECT_EQ(load_share(one, 1), 1.0);
  EXPECT_EQ(load_share(balanced, 2), 1.0 / 3.0);
  EXPECT_EQ(load_share(none, 0), 0.0);
  EXPECT_THROW(load_share(none, 2), Error);
  EXPECT_THROW(load_share(none, -1), Error);
}

void expect_gathered(const MoePlan& plan, const StridedMatrix& x, const StridedMatrix& grouped) {
  for (int64_t r = 0; r < plan.rows(); ++r) {
    const int64_t token = plan.token_of[static_cast<size_t>(r)];
    for (int64_t c = 0; c < x.view().shape()[1]; ++c) {
      ASSERT_EQ(grouped.at(r, c), token < 0 ? 0.0f : x.at(token, c)) << r;
    }
  }
}

// Of each token, the sum of the probabilities of the choices that have a row.
std::vector<double> kept_probabilities(const MoePlan& plan, const Written& choices) {
  std::vector<double> kept(static_cast<size_t>(plan.num_tokens));
  for (size_t c = 0; c < choices.experts.size(); ++c) {
    if (plan.row_of[c] < 0) continue;
    kept[c / static_cast<size_t>(choices.per_token)] +=
        static_cast<double>(choices.probabilities[c]);
  }
  return kept;
}

// Gather, then scatter of what was gathered: every token gets itself times what its choices keep.
void expect_round_trip(Context& context, Rng& rng, int64_t columns) {
  constexpr int64_t kTokens = 90;
  Written choices = random_choices(rng, kTokens, 2, 5);
  const MoePlan plan = moe_plan(context, {choices.view(), 5, 8, 0.8, DropRule::kByProbability});
  StridedMatrix x(kTokens, columns, 1), y(kTokens, columns, 2);
  const StridedMatrix grouped(plan.rows(), columns, 3);
  x.fill_normal(rng);
  y.fill_normal(rng);
  const StridedMatrix before = y.clone();
  moe_gather(context, {plan, x.view(), grouped.view()});
  expect_gathered(plan, x, grouped);
  moe_scatter(context, {plan, grouped.view(), choices.view().probabilities, y.view()});
  EXPECT_TRUE(grouped.gaps_untouched() && y.gaps_untouched());
  const std::vector<double> kept = kept_probabilities(plan, choices);
  for (int64_t i = 0; i < kTokens; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      const double want =
          before.at(i, c) + kept[static_cast<size_t>(i)] * static_cast<double>(x.at(i, c));
      ASSERT_NEAR(y.at(i, c), want, 4e-6 * (1 + std::fabs(want))) << i << ", " << c;
    }
  }
}

TEST(MoeDispatch, ScatterUndoesGather) {
  Rng rng(7);
  for (const int threads : {1, 2, 3}) {
    Context context(threads);
    for (const int64_t columns : {1, 7, 1000}) expect_round_trip(context, rng, columns);
  }
}

TEST(MoeDispatch, ThreadsGiveTheSameBits) {
  Rng rng(8);
  const int64_t tokens = 300, columns = 257;
  Written choices = random_choices(rng, tokens, 3, 6);
  StridedMatrix x(tokens, columns), start(tokens, columns);
  x.fill_normal(rng);
  start.fill_normal(rng);
  const auto result = [&](int threads) {
    Context context(threads);
    const MoePlan plan = moe_plan(context, {choices.view(), 6});
    const StridedMatrix grouped(plan.rows(), columns);
    StridedMatrix y = start.clone();
    moe_gather(context, {plan, x.view(), grouped.view()});
    moe_scatter(context, {plan, grouped.view(), choices.view().probabilities, y.view()});
    return y;
  };
  const StridedMatrix one = result(1);
  for (const int threads : {2, 3, 8}) {
    EXPECT_TRUE(test::same_bits(one.view(), result(threads).view())) << threads;
  }
}

TEST(MoeDispatch, RefusesWhatDoesNotFit) {
  Context context(1);
  Written choices(1, {0, 1, 1}, {});
  const MoePlan plan = moe_plan(context, {choices.view(), 2, 2});
  const ConstTensorView p = choices.view().probabilities;
  const StridedMatrix x(3, 4), rows(4, 4), longer(5, 4);
  EXPECT_NO_THROW(moe_gather(context, {plan, x.view(), rows.view()}));
  EXPECT_NO_THROW(moe_scatter(context, {plan, rows.view(), p, x.view()}));
  EXPECT_THROW(moe_gather(context, {plan, longer.view(), rows.view()}), Error);
  EXPECT_THROW(moe_gather(context, {plan, x.view(), longer.view()}), Error);
  EXPECT_THROW(moe_gather(context, {plan, rows.view().rows(0, 3), rows.view()}), Error);
  EXPECT_THROW(moe_scatter(context, {plan, longer.view(), p, x.view()}), Error);
  EXPECT_THROW(moe_scatter(context, {plan, rows.view(), p, longer.view()}), Error);
  EXPECT_THROW(moe_scatter(context, {plan, rows.view(), x.view(), x.view()}), Error);
  EXPECT_THROW(moe_scatter(context, {plan, rows.view(), p, rows.view().rows(1, 3)}), Error);
}

}  // namespace
}  // namespace spb::ops
