#include "ops/rope/rope.h"

#include <gtest/gtest.h>

#include <numbers>
#include <tuple>
#include <vector>

#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

constexpr double kTolerance = 1e-6;

// Tokens of heads, with a gap behind every head.
struct Heads {
  StridedMatrix rows;
  Shape shape;

  Heads(int64_t tokens, int64_t heads, int64_t dim, int64_t gap = 0)
      : rows(tokens * heads, dim, gap), shape{tokens, heads, dim} {}
  Heads(StridedMatrix matrix, const Shape& tokens_heads_dim)
      : rows(std::move(matrix)), shape(tokens_heads_dim) {}

  Heads clone() const { return {rows.clone(), shape}; }
  TensorView view() const {
    return {rows.view().data(), DType::kF32, shape, rows.view().row_stride_bytes()};
  }
};

class Rope : public ::testing::TestWithParam<std::tuple<Isa, RopePairs>> {
 protected:
  RopeArgs args(const Heads& x, std::span<const int64_t> positions) const {
    return {.x = x.view(), .positions = positions, .factors = {}, .pairs = pairs_};
  }
  size_t first_of(int64_t j) const {
    return static_cast<size_t>(pairs_ == RopePairs::kHalf ? j : 2 * j);
  }
  size_t second_of(int64_t j, int64_t pairs) const {
    return static_cast<size_t>(pairs_ == RopePairs::kHalf ? j + pairs : 2 * j + 1);
  }
  void expect_pairs_close(const Heads& actual, const Heads& expected, double tolerance) const {
    const int64_t pairs = actual.shape[2] / 2;
    for (int64_t i = 0; i < actual.shape.rows(); ++i) {
      const float* x = actual.rows.row(i);
      const float* y = expected.rows.row(i);
      for (int64_t j = 0; j < pairs; ++j) {
        const double a = y[first_of(j)], b = y[second_of(j, pairs)];
        const double length = std::hypot(a, b);
        EXPECT_NEAR(x[first_of(j)], a, tolerance * length) << i << ", pair " << j;
        EXPECT_NEAR(x[second_of(j, pairs)], b, tolerance * length) << i << ", pair " << j;
      }
    }
  }

  test::IsaScope level_{std::get<0>(GetParam())};
  RopePairs pairs_ = std::get<1>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Levels, Rope,
                         ::testing::Combine(::testing::ValuesIn(test::isa_levels()),
                                            ::testing::Values(RopePairs::kHalf,
                                                              RopePairs::kInterleaved)));

TEST_P(Rope, AgreesWithTheReferenceUpToMillionsOfPositions) {
  Context context(2);
  Rng rng(1);
  for (const int64_t dim : {2, 6, 16, 30, 34, 64, 80, 128, 256}) {
    for (const double theta : {10000.0, 1e6, 5e5}) {
      Heads actual(1 + rng.below(6), 1 + rng.below(4), dim, rng.below(3));
      actual.rows.fill_normal(rng);
      const Heads expected = actual.clone();
      std::vector<int64_t> positions(static_cast<size_t>(actual.shape[0]));
      for (int64_t& position : positions) position = rng.below(int64_t{1} << (1 + rng.below(24)));
      StridedMatrix factors(1, dim / 2);
      for (int64_t j = 0; j < dim / 2; ++j) factors.row(0)[j] = rng.uniform(0.5f, 8.0f);
      RopeArgs a = args(actual, positions);
      RopeArgs e = args(expected, positions);
      a.theta = e.theta = theta;
      if (rng.below(2) == 0) a.factors = e.factors = factors.view().reshaped(Shape{dim / 2});
      rope(context, a);
      rope_reference(e);
      expect_pairs_close(actual, expected, kTolerance);
      EXPECT_TRUE(actual.rows.gaps_untouched());
    }
  }
}

TEST_P(Rope, PositionZeroChangesNothing) {
  Context context(1);
  Rng rng(2);
  Heads x(1, 3, 50);
  x.rows.fill_normal(rng);
  const Heads before = x.clone();
  rope(context, args(x, std::vector<int64_t>{0}));
  EXPECT_TRUE(test::same_bits(x.rows.view(), before.rows.view()));
}

TEST_P(Rope, RotationsAdd) {
  Context context(1);
  Rng rng(3);
  Heads twice(1, 2, 64);
  twice.rows.fill_normal(rng);
  const Heads once = twice.clone();
  rope(context, args(twice, std::vector<int64_t>{1234}));
  rope(context, args(twice, std::vector<int64_t>{4321}));
  rope(context, args(once, std::vector<int64_t>{5555}));
  expect_pairs_close(twice, once, 1e-6);
}

TEST_P(Rope, ScoresDependOnDistanceOnly) {
  Context context(1);
  Rng rng(4);
  Heads q(1, 1, 128), k(1, 1, 128);
  q.rows.fill_normal(rng);
  k.rows.fill_normal(rng);
  const auto score = [&](int64_t at_q, int64_t at_k) {
    const Heads a = q.clone();
    const Heads b = k.clone();
    rope(context, args(a, std::vector<int64_t>{at_q}));
    rope(context, args(b, std::vector<int64_t>{at_k}));
    double sum = 0;
    for (int64_t c = 0; c < 128; ++c) {
      sum += static_cast<double>(a.rows.at(0, c)) * b.rows.at(0, c);
    }
    return sum;
  };
  EXPECT_NEAR(score(100, 37), score(1000063, 1000000), 1e-4);
}

TEST_P(Rope, BatchAndThreadsGiveTheBitsOfOneToken) {
  Rng rng(5);
  Heads all(37, 9, 64);
  all.rows.fill_normal(rng);
  const Heads start = all.clone();
  std::vector<int64_t> positions(37);
  for (int64_t& position : positions) position = rng.below(100000);
  Context one(1);
  for (int64_t i = 0; i < 37; ++i) {
    RopeArgs a = args(all, std::span(positions).subspan(static_cast<size_t>(i), 1));
    a.x = TensorView(all.rows.view().row(i * 9), DType::kF32, Shape{1, 9, 64});
    rope(one, a);
  }
  for (const int threads : {1, 2, 3, 8}) {
    Context context(threads);
    const Heads x = start.clone();
    rope(context, args(x, positions));
    EXPECT_TRUE(test::same_bits(x.rows.view(), all.rows.view())) << threads;
  }
}

TEST_P(Rope, LargestPositionKeepsLengths) {
  Context context(1);
  Rng rng(6);
  Heads x(1, 1, 64);
  x.rows.fill_normal(rng);
  const Heads before = x.clone();
  rope(context, args(x, std::vector<int64_t>{int64_t{1} << 40}));
  for (int64_t j = 0; j < 32; ++j) {
    const auto length = [&](const Heads& heads) {
      return std::hypot(heads.rows.row(0)[first_of(j)], heads.rows.row(0)[second_of(j, 32)]);
    };
    EXPECT_NEAR(length(x), length(before), 1e-6 * length(before));
  }
}

TEST(RopeArguments, WrongOnesAreNamed) {
  Context context(1);
  Heads x(2, 1, 8);
  const std::vector<int64_t> positions{3, 4};
  const auto message = [&](auto change) -> std::string {
    RopeArgs args{.x = x.view(), .positions = positions, .factors = {}};
    change(args);
    try {
      rope(context, args);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  const std::vector<int64_t> negative{3, -4};
  StridedMatrix factors(1, 4);
  std::fill_n(factors.row(0), 4, 0.0f);
  EXPECT_EQ(message([&](RopeArgs& a) { a.positions = negative; }),
            "rope: positions[1]: expected 0 to 1099511627776, got -4");
  EXPECT_EQ(message([&](RopeArgs& a) { a.positions = a.positions.subspan(1); }),
            "rope: positions: expected 2 (one per token), got 1");
  EXPECT_EQ(message([&](RopeArgs& a) { a.theta = -1; }),
            "rope: theta: expected a number > 0, got -1");
  EXPECT_EQ(message([&](RopeArgs& a) { a.factors = factors.view().reshaped(Shape{4}); }),
            "rope: factors[0]: expected a number > 0, got 0");
  EXPECT_EQ(message([&](RopeArgs& a) {
              a.x = a.x.reshaped(Shape{2, 8});
            }),
            "rope: x: expected [N, H, D] with D even and > 0, got [2, 8]");
}

TEST(Llama3RopeFactors, KeepFastPairsAndStretchSlowOnes) {
  const Llama3Scaling scaling{.factor = 32, .original_context = 8192};
  const std::vector<float> factors = llama3_rope_factors(scaling, 500000.0, 64);
  ASSERT_EQ(factors.size(), 32u);
  EXPECT_EQ(factors.front(), 1.0f);
  EXPECT_EQ(factors.back(), 32.0f);
  int blended = 0;
  for (size_t j = 0; j < factors.size(); ++j) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(500000.0, static_cast<double>(j) / 32.0);
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(factors[j], 1.0f) << j;
    } else if (wavelength > 8192.0) {
      EXPECT_EQ(factors[j], 32.0f) << j;
    } else {
      const double smooth = (8192.0 / wavelength - 1) / 3;
      EXPECT_NEAR(1 / factors[j], (1 - smooth) / 32 + smooth, 1e-6) << j;
      ++blended;
    }
    EXPECT_GE(factors[j], factors[j > 0 ? j - 1 : 0]);
  }
  EXPECT_GT(blended, 0);
}

TEST(Llama3RopeFactors, ImpossibleSettingsAreNamed) {
  const auto message = [](const Llama3Scaling& scaling, double theta, int64_t head_dim) {
    try {
      llama3_rope_factors(scaling, theta, head_dim);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message({.factor = 0}, 1e4, 64), "rope scaling: factor: expected a number > 0, got 0");
  EXPECT_EQ(
      message({.low_frequency_factor = 4, .high_frequency_factor = 4}, 1e4, 64),
      "rope scaling: high_frequency_factor: expected more than low_frequency_factor 4, got 4");
  EXPECT_EQ(message({}, 1e4, 63), "rope scaling: head_dim: expected even and > 0, got 63");
}

}  // namespace
}  // namespace spb::ops
