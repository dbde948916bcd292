// The operators of this folder together: a whole feed-forward network of experts.
#include <gtest/gtest.h>

#include <numeric>

#include "ops/moe/moe_test_ffn.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;
using test_moe::MoeFfn;
using test_moe::Settings;
using test_moe::Sizes;

class MoeFfnTest : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, MoeFfnTest, ::testing::ValuesIn(test::isa_levels()));

// Error of a row relative to its largest element; three products in a row add up theirs.
double tolerance(DType dtype) {
  if (dtype == DType::kF32) return 1e-5;
  return is_float(dtype) ? 2e-2 : 5e-2;
}

void expect_agreement(Context& context, const MoeFfn& ffn, const Sizes& sizes, ConstTensorView x,
                      const Settings& settings, const char* what) {
  const int64_t tokens = x.shape()[0];
  const StridedMatrix y(tokens, sizes.hidden, 1), want(tokens, sizes.hidden);
  const std::vector<int64_t> loads = ffn.run(context, x, y.view(), settings);
  ffn.reference(x, want.view(), settings);
  EXPECT_LE(test::largest_row_error(y.view(), want.view()), tolerance(sizes.dtype)) << what;
  EXPECT_EQ(std::accumulate(loads.begin(), loads.end(), int64_t{0}),
            tokens * sizes.experts_per_token);
  EXPECT_TRUE(y.gaps_untouched());
}

TEST_P(MoeFfnTest, AgreesWithPlainLoops) {
  Context context(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    for (const int64_t k : {1, 2, 8}) {
      const Sizes sizes{.experts_per_token = k, .shared_experts = k % 3, .dtype = dtype};
      const MoeFfn ffn(context, 11, sizes);
      Rng rng(12);
      for (const int64_t tokens : {0, 1, 2, 37}) {
        StridedMatrix memory(tokens + 1, sizes.hidden, 3);
        const TensorView x = memory.fill_normal(rng).view().rows(0, tokens);
        expect_agreement(context, ffn, sizes, x, {}, "softmax");
        expect_agreement(context, ffn, sizes, x, {RouterScore::kSigmoid, true}, "sigmoid");
        expect_agreement(context, ffn, sizes, x, {.align = 16}, "aligned");
      }
    }
  }
}

TEST_P(MoeFfnTest, AgreesWithPlainLoopsWhenTokensAreDropped) {
  Context context(2);
  const Sizes sizes;
  const MoeFfn ffn(context, 13, sizes);
  Rng rng(14);
  StridedMatrix x(50, sizes.hidden);
  x.fill_normal(rng);
  for (const double factor : {0.3, 0.75, 1.0, 1.5}) {
    for (const DropRule rule : {DropRule::kByPosition, DropRule::kByProbability}) {
      const Settings settings{.align = 4, .capacity_factor = factor, .drop_rule = rule};
      expect_agreement(context, ffn, sizes, x.view(), settings, "capacity");
    }
  }
}

TEST_P(MoeFfnTest, AlignmentAndRepackingDoNotChangeFewRows) {
  // Segments stay below the thresholds at which matmul takes another path.
  Context context(2);
  Sizes sizes{.dtype = DType::kQ8_0};
  const MoeFfn packed(context, 15, sizes);
  sizes.repack = false;
  const MoeFfn mapped(context, 15, sizes);
  Rng rng(16);
  StridedMatrix x(9, sizes.hidden);
  x.fill_normal(rng);
  const StridedMatrix want(9, sizes.hidden), y(9, sizes.hidden);
  packed.run(context, x.view(), want.view());
  mapped.run(context, x.view(), y.view(), {.align = 3});
  EXPECT_TRUE(test::same_bits(want.view(), y.view()));
}

// All tokens equal: they all go to the same experts.
TEST_P(MoeFfnTest, OneExpertTakesEveryToken) {
  Context context(2);
  const Sizes sizes{.experts_per_token = 1, .shared_experts = 0};
  const MoeFfn ffn(context, 17, sizes);
  Rng rng(18);
  StridedMatrix x(40, sizes.hidden);
  x.fill_normal(rng);
  for (int64_t i = 1; i < 40; ++i) std::copy_n(x.row(0), sizes.hidden, x.row(i));
  const StridedMatrix y(40, sizes.hidden);
  EXPECT_EQ(load_imbalance(ffn.run(context, x.view(), y.view())), 8.0);
  expect_agreement(context, ffn, sizes, x.view(), {}, "one expert");
}

TEST_P(MoeFfnTest, ThreadsGiveTheSameBits) {
  const Sizes sizes{.dtype = DType::kBF16};
  Context one(1);
  const MoeFfn ffn(one, 19, sizes);
  Rng rng(20);
  StridedMatrix x(150, sizes.hidden);
  x.fill_normal(rng);
  const StridedMatrix want(150, sizes.hidden);
  ffn.run(one, x.view(), want.view());
  for (const int threads : {2, 3, 8}) {
    Context context(threads);
    const StridedMatrix y(150, sizes.hidden);
    ffn.run(context, x.view(), y.view());
    EXPECT_TRUE(test::same_bits(want.view(), y.view())) << threads;
  }
}

}  // namespace
}  // namespace spb::ops
