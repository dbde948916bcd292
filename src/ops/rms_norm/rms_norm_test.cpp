#include "ops/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <tuple>

#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

constexpr double kTolerance = 2e-6;

struct Problem {
  StridedMatrix x;
  StridedMatrix residual;
  StridedMatrix weight;
  StridedMatrix y;
  bool has_residual;

  Problem(Rng& rng, int64_t rows, int64_t columns, int64_t gap, bool with_residual)
      : x(rows, columns, gap),
        residual(rows, columns, 2 * gap),
        weight(1, columns),
        y(rows, columns, 3 * gap),
        has_residual(with_residual) {
    x.fill_normal(rng, 3.0f);
    residual.fill_normal(rng);
    weight.fill_normal(rng);
  }

  Problem clone() const { return *this; }
  RmsNormArgs args() const {
    return {.x = x.view(),
            .residual = has_residual ? residual.view() : TensorView(),
            .weight = weight.view().reshaped(Shape{weight.view().shape()[1]}),
            .y = y.view(),
            .eps = 1e-5f};
  }

 private:
  Problem(const Problem& other)
      : x(other.x.clone()),
        residual(other.residual.clone()),
        weight(other.weight.clone()),
        y(other.y.clone()),
        has_residual(other.has_residual) {}
};

class RmsNorm : public ::testing::TestWithParam<std::tuple<Isa, bool>> {
 protected:
  test::IsaScope level_{std::get<0>(GetParam())};
  bool residual_ = std::get<1>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Levels, RmsNorm,
                         ::testing::Combine(::testing::ValuesIn(test::isa_levels()),
                                            ::testing::Bool()));

TEST_P(RmsNorm, AgreesWithTheReferenceOnOddShapes) {
  Context context(2);
  Rng rng(1);
  for (const int64_t columns : {1, 3, 15, 16, 17, 31, 63, 64, 65, 127, 576, 2047, 2049, 5003}) {
    const int64_t rows = 1 + rng.below(5);
    const Problem expected(rng, rows, columns, rng.below(4), residual_);
    const Problem actual = expected.clone();
    rms_norm_reference(expected.args());
    rms_norm(context, actual.args());
    EXPECT_LE(test::largest_row_error(actual.y.view(), expected.y.view()), kTolerance) << columns;
    EXPECT_TRUE(test::same_bits(actual.residual.view(), expected.residual.view())) << columns;
    EXPECT_TRUE(actual.y.gaps_untouched() && actual.residual.gaps_untouched()) << columns;
  }
}

TEST_P(RmsNorm, InPlaceGivesTheSameBits) {
  Context context(1);
  Rng rng(2);
  const Problem apart(rng, 3, 577, 1, residual_);
  const Problem in_place = apart.clone();
  rms_norm(context, apart.args());
  RmsNormArgs args = in_place.args();
  args.y = in_place.x.view();
  rms_norm(context, args);
  EXPECT_TRUE(test::same_bits(in_place.x.view(), apart.y.view()));
}

TEST_P(RmsNorm, AccumulatingAddsToWhatIsThere) {
  Context context(2);
  Rng rng(8);
  for (const int64_t columns : {1, 15, 64, 67, 2049}) {
    const Problem plain(rng, 3, columns, 1, residual_);
    const Problem expected = plain.clone();
    const Problem actual = plain.clone();
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        const float before = rng.uniform(-2.0f, 2.0f);
        expected.y.view().row_as<float>(i)[c] = before;
        actual.y.view().row_as<float>(i)[c] = before;
      }
    }
    RmsNormArgs args = expected.args();
    args.accumulate = true;
    rms_norm_reference(args);
    args = actual.args();
    args.accumulate = true;
    rms_norm(context, args);
    EXPECT_LE(test::largest_row_error(actual.y.view(), expected.y.view()), kTolerance) << columns;
    EXPECT_TRUE(actual.y.gaps_untouched()) << columns;
  }
}

TEST_P(RmsNorm, ThreadsDoNotChangeTheBits) {
  Rng rng(3);
  const Problem one(rng, 301, 517, 0, residual_);
  Context single(1);
  const Problem start = one.clone();
  rms_norm(single, one.args());
  for (const int threads : {2, 3, 8}) {
    Context context(threads);
    const Problem many = start.clone();
    rms_norm(context, many.args());
    EXPECT_TRUE(test::same_bits(many.y.view(), one.y.view())) << threads;
    EXPECT_TRUE(test::same_bits(many.residual.view(), one.residual.view())) << threads;
  }
}

TEST_P(RmsNorm, ARowDoesNotDependOnItsNeighbours) {
  Context context(2);
  Rng rng(4);
  const Problem batch(rng, 9, 130, 0, residual_);
  const Problem alone = batch.clone();
  rms_norm(context, batch.args());
  for (int64_t i = 0; i < 9; ++i) {
    RmsNormArgs args = alone.args();
    args.x = args.x.rows(i, 1);
    if (residual_) args.residual = args.residual.rows(i, 1);
    args.y = args.y.rows(i, 1);
    rms_norm(context, args);
  }
  EXPECT_TRUE(test::same_bits(alone.y.view(), batch.y.view()));
}

TEST_P(RmsNorm, OutputHasUnitRootMeanSquareForUnitWeight) {
  Context context(1);
  Rng rng(5);
  Problem p(rng, 2, 4099, 0, residual_);
  std::fill_n(p.weight.row(0), 4099, 1.0f);
  rms_norm(context, p.args());
  for (int64_t i = 0; i < 2; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < 4099; ++c) sum += static_cast<double>(p.y.at(i, c)) * p.y.at(i, c);
    EXPECT_NEAR(sum / 4099, 1.0, 1e-5);
  }
}

TEST_P(RmsNorm, ZeroRowsStayZeroAndNoRowsAreNoWork) {
  Context context(2);
  Rng rng(6);
  Problem p(rng, 1, 70, 0, residual_);
  p.x.fill_normal(rng, 0.0f);
  p.residual.fill_normal(rng, 0.0f);
  rms_norm(context, p.args());
  for (int64_t c = 0; c < 70; ++c) EXPECT_EQ(p.y.at(0, c), 0.0f);
  const Problem none(rng, 0, 70, 0, residual_);
  EXPECT_NO_THROW(rms_norm(context, none.args()));
}

TEST(RmsNormArguments, WrongOnesAreNamed) {
  Context context(1);
  Rng rng(7);
  const Problem p(rng, 4, 32, 0, true);
  const auto message = [&](auto change) -> std::string {
    RmsNormArgs args = p.args();
    change(args);
    try {
      rms_norm(context, args);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  const StridedMatrix other(4, 31);
  EXPECT_EQ(message([&](RmsNormArgs& a) { a.y = other.view(); }),
            "rms_norm: y: expected f32 [4, 32], got f32 [4, 31]");
  EXPECT_EQ(message([&](RmsNormArgs& a) {
              a.weight = a.weight.reshaped(Shape{4, 8});
            }),
            "rms_norm: weight: expected f32 [32], got f32 [4, 8]");
  EXPECT_EQ(message([](RmsNormArgs& a) { a.eps = 0; }),
            "rms_norm: eps: expected a number > 0, got 0");
  EXPECT_EQ(message([](RmsNormArgs& a) { a.y = a.residual; }),
            "rms_norm: residual and y: expected separate memory, got overlapping");
  EXPECT_EQ(message([](RmsNormArgs& a) { a.x = ConstTensorView(); }),
            "rms_norm: x: expected [N, C] with C > 0, got []");
}

}  // namespace
}  // namespace spb::ops
