// Routing and dispatch on a CUDA device against the CPU, whose results are the same numbers.
#include <cstring>

#include "core/test_cuda.h"
#include "ops/moe/moe_dispatch.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

using MoeCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, MoeCuda, test::activation_dtypes(), test::dtype_name);

struct HostChoices {
  HostChoices(int64_t tokens, int64_t k)
      : experts(DType::kI32, Shape{tokens, k}), probabilities(DType::kF32, Shape{tokens, k}) {}
  MoeChoices view() { return {experts, probabilities}; }
  Tensor experts;
  Tensor probabilities;
};

Tensor random_logits(Rng& rng, int64_t tokens, int64_t experts, bool hostile) {
  const float inf = std::numeric_limits<float>::infinity();
  const float strange[] = {test::kPoison, inf, -inf, 0.0f, -0.0f, 1.0f, 1e30f};
  Tensor logits(DType::kF32, Shape{tokens, experts});
  for (int64_t i = 0; i < logits.shape().elements(); ++i) {
    logits.as<float>()[i] = hostile ? strange[rng.below(7)] : 3.0f * rng.normal();
  }
  return logits;
}

HostChoices random_choices(Rng& rng, int64_t tokens, int64_t k, int64_t experts) {
  HostChoices choices(tokens, k);
  for (int64_t c = 0; c < tokens * k; ++c) {
    choices.experts.as<int32_t>()[c] = static_cast<int32_t>(rng.below(experts));
    choices.probabilities.as<float>()[c] = 0.1f * static_cast<float>(rng.below(10));
  }
  return choices;
}

void expect_near(const Tensor& got, const Tensor& want) {
  for (int64_t i = 0; i < want.shape().elements(); ++i) {
    const float w = want.as<float>()[i];
    const float g = got.as<float>()[i];
    if (std::isnan(w)) {
      ASSERT_TRUE(std::isnan(g)) << i;
    } else {
      ASSERT_NEAR(g, w, 1e-6f * std::fabs(w)) << i;
    }
  }
}

void expect_same_choices(Context& context, const Tensor& logits, int64_t k, RouterScore score,
                         bool renormalize) {
  Context cpu(1);
  const int64_t tokens = logits.shape()[0];
  HostChoices want(tokens, k), got(tokens, k);
  moe_route(cpu, {logits, want.view(), score, renormalize});
  const Tensor device_logits = to_device(context, logits);
  Tensor experts(DType::kI32, Shape{tokens, k}, context.device());
  Tensor probabilities = test::poisoned(context, Shape{tokens, k});
  moe_route(context, {device_logits, {experts, probabilities}, score, renormalize});
  to_host(context, experts, got.experts);
  to_host(context, probabilities, got.probabilities);
  ASSERT_EQ(std::memcmp(got.experts.as<int32_t>(), want.experts.as<int32_t>(),
                        static_cast<size_t>(want.experts.bytes())),
            0);
  expect_near(got.probabilities, want.probabilities);
}

void expect_same_choices(Context& context, Rng& rng, int64_t tokens, int64_t experts) {
  const int64_t k = 1 + rng.below(std::min<int64_t>(experts, 8));
  for (int variant = 0; variant < 8; ++variant) {
    const Tensor logits = random_logits(rng, tokens, experts, (variant & 1) != 0);
    expect_same_choices(context, logits, k,
                        (variant & 2) != 0 ? RouterScore::kSigmoid : RouterScore::kSoftmax,
                        (variant & 4) != 0);
  }
}

TEST_P(MoeCuda, ChoosesTheExpertsThatTheCpuChooses) {
  Rng rng(1);
  for (const int64_t tokens : {1, 63, 65, 1000}) {
    for (const int64_t experts : {1, 5, 16, 64, 128}) {
      expect_same_choices(context(), rng, tokens, experts);
      if (HasFailure()) return;
    }
  }
}

// A router in f32 is not rounded because the activations are.
TEST_P(MoeCuda, LogitsAreThoseOfTheRouterAsItIs) {
  Rng rng(2);
  Tensor router(DType::kF32, Shape{16, 256});
  for (int64_t i = 0; i < router.shape().elements(); ++i) router.as<float>()[i] = rng.normal();
  const MatmulWeight prepared = prepare_matmul_weight(context(), router, false);
  for (const int64_t tokens : {1, 8, 70}) {
    const Tensor x = test::random_tensor(rng, Shape{tokens, 256});
    Tensor want(DType::kF32, Shape{tokens, 16});
    matmul_reference(x, router, {}, want);
    const Tensor device_x = test::put(context(), x, GetParam());
    Tensor logits = test::poisoned(context(), want.shape());
    moe_logits(context(), {device_x, prepared, logits});
    EXPECT_LE(test::relative_error(test::take(context(), logits), want), 1e-6) << tokens;
  }
}

// A plan of the device, on the host.
struct HostPlan {
  HostPlan(Context& context, const MoePlan& plan)
      : offsets(read(context, plan.offsets)),
        token_of(read(context, plan.token_of)),
        row_of(read(context, plan.row_of)),
        assigned(read(context, plan.assigned)),
        dropped(read(context, plan.dropped)) {}

  static std::vector<int64_t> read(Context& context, std::span<const int64_t> values) {
    std::vector<int64_t> host(values.size());
    if (host.empty()) return host;
    const Shape shape{static_cast<int64_t>(values.size())};
    to_host(context, ConstTensorView(values.data(), shape), TensorView(host.data(), shape));
    return host;
  }

  std::vector<int64_t> offsets, token_of, row_of, assigned, dropped;
};

template <typename Values>
std::vector<int64_t> list(const Values& values) {
  return {values.begin(), values.end()};
}

void expect_same_plan(Context& context, HostChoices& choices, const MoePlanArgs& wanted) {
  Context cpu(1);
  const Tensor experts = to_device(context, choices.experts);
  const Tensor probabilities = to_device(context, choices.probabilities);
  MoePlanArgs args = wanted;
  args.choices = choices.view();
  const MoePlan want = moe_plan(cpu, args);
  Tensor device_experts = to_device(context, choices.experts);
  Tensor device_probabilities = to_device(context, choices.probabilities);
  args.choices = {device_experts, device_probabilities};
  const Arena::Scope scope(context.arena());
  const MoePlan plan = moe_plan(context, args);
  const HostPlan got(context, plan);
  ASSERT_EQ(got.offsets, list(want.offsets));
  ASSERT_EQ(got.row_of, list(want.row_of));
  ASSERT_EQ(got.assigned, list(want.assigned));
  ASSERT_EQ(got.dropped, list(want.dropped));
  std::vector<int64_t> token_of = list(want.token_of);
  ASSERT_GE(plan.rows(), want.rows());
  if (args.align == 1 && args.capacity_factor == 0) {
    ASSERT_EQ(plan.rows(), want.rows());
  }
  token_of.resize(static_cast<size_t>(plan.rows()), -1);
  ASSERT_EQ(got.token_of, token_of);
}

void expect_same_plans(Context& context, HostChoices& choices, int64_t experts, int64_t align) {
  for (const double capacity : {0.0, 0.25, 1.0}) {
    for (const DropRule rule : {DropRule::kByPosition, DropRule::kByProbability}) {
      expect_same_plan(context, choices, {{}, experts, align, capacity, rule});
    }
  }
}

TEST_P(MoeCuda, PlansAreThoseOfTheCpu) {
  Rng rng(3);
  for (const int64_t tokens : {0, 1, 63, 65, 1000, 5000}) {
    for (const int64_t experts : {1, 7, 64, 128, 3000}) {
      const int64_t k = 1 + rng.below(std::min<int64_t>(experts, 8));
      HostChoices choices = random_choices(rng, tokens, k, experts);
      for (const int64_t align : {1, 5, 128}) {
        expect_same_plans(context(), choices, experts, align);
      }
      if (HasFailure()) return;
    }
  }
}

TEST_P(MoeCuda, NotANumberIsDroppedFirst) {
  HostChoices choices(4, 1);
  const float probabilities[] = {test::kPoison, 0.0f, test::kPoison, -0.0f};
  std::copy_n(probabilities, 4, choices.probabilities.as<float>());
  for (const double capacity : {0.25, 0.5, 0.75}) {
    expect_same_plan(context(), choices, {{}, 1, 1, capacity, DropRule::kByProbability});
  }
}

TEST_P(MoeCuda, ChoicesOutOfRangeHaveNoRow) {
  HostChoices choices(3, 1);
  choices.experts.as<int32_t>()[0] = -1;
  choices.experts.as<int32_t>()[1] = 2;
  choices.experts.as<int32_t>()[2] = 1;
  Tensor experts = to_device(context(), choices.experts);
  Tensor probabilities = to_device(context(), choices.probabilities);
  const MoePlan plan = moe_plan(context(), {{experts, probabilities}, 2});
  const HostPlan got(context(), plan);
  EXPECT_EQ(got.row_of, (std::vector<int64_t>{-1, -1, 0}));
  EXPECT_EQ(got.token_of, (std::vector<int64_t>{2, -1, -1}));
  EXPECT_EQ(got.offsets, (std::vector<int64_t>{0, 0, 1}));
}

// Gather, then scatter of what was gathered, on both.
void expect_same_rows(Context& context, DType dtype, Rng& rng, int64_t tokens, int64_t columns) {
  Context cpu(1);
  HostChoices choices = random_choices(rng, tokens, 2, 5);
  const MoePlanArgs args{choices.view(), 5, 8, 0.8, DropRule::kByProbability};
  const Tensor x = test::random_tensor(rng, Shape{tokens, columns});
  Tensor want = test::random_tensor(rng, x.shape());
  Tensor y = test::put(context, want, dtype);
  const MoePlan plan = moe_plan(cpu, args);
  Tensor grouped(DType::kF32, Shape{plan.rows(), columns});
  moe_gather(cpu, {plan, x, grouped});
  moe_scatter(cpu, {plan, grouped, choices.probabilities, want});

  Tensor experts = to_device(context, choices.experts);
  Tensor probabilities = to_device(context, choices.probabilities);
  MoePlanArgs device_args = args;
  device_args.choices = {experts, probabilities};
  const Arena::Scope scope(context.arena());
  const MoePlan device_plan = moe_plan(context, device_args);
  const Shape rows{device_plan.rows(), columns};
  Tensor device_grouped = test::poisoned(context, rows, dtype);
  moe_gather(context, {device_plan, test::put(context, x, dtype), device_grouped});
  moe_scatter(context, {device_plan, device_grouped, probabilities, y});
  const Tensor got = test::take(context, device_grouped);
  for (int64_t i = 0; i < rows.elements(); ++i) {
    const float expected =
        i < grouped.shape().elements() ? grouped.as<float>()[i] : 0.0f;  // padding
    ASSERT_EQ(got.as<float>()[i], expected) << i;
  }
  EXPECT_LE(test::relative_error(test::take(context, y), want), test::tolerance(dtype));
}

TEST_P(MoeCuda, GathersAndScattersLikeTheCpu) {
  Rng rng(4);
  for (const int64_t tokens : {1, 65, 300}) {
    for (const int64_t columns : {1, 7, 1000, 3584}) {
      expect_same_rows(context(), GetParam(), rng, tokens, columns);
    }
  }
}

TEST_P(MoeCuda, AnyNumberOfRows) {
  Rng rng(5);
  for (const int64_t tokens : kAwkwardRows) {
    for (const int64_t columns : {7, 24}) {
      expect_same_rows(context(), GetParam(), rng, tokens, columns);
    }
    expect_same_choices(context(), rng, tokens, 16);
    HostChoices choices = random_choices(rng, tokens, 2, 16);
    expect_same_plans(context(), choices, 16, 1);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace spb::ops
