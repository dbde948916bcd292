#include "ops/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

class Swiglu : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, Swiglu, ::testing::ValuesIn(test::isa_levels()));

void expect_close(const StridedMatrix& actual, const StridedMatrix& expected,
                  const StridedMatrix& up) {
  for (int64_t i = 0; i < actual.view().shape()[0]; ++i) {
    for (int64_t c = 0; c < actual.view().shape()[1]; ++c) {
      const double e = expected.at(i, c);
      const double flushed = 1.1e-36 * std::max(1.0, std::fabs(static_cast<double>(up.at(i, c))));
      EXPECT_NEAR(actual.at(i, c), e, 1e-6 * std::fabs(e) + flushed) << i << ", " << c;
    }
  }
}

TEST_P(Swiglu, AgreesWithTheReferenceOnOddShapes) {
  Context context(2);
  Rng rng(1);
  for (const int64_t columns : {1, 2, 15, 16, 17, 33, 191, 1536, 8191, 8193, 20011}) {
    const int64_t rows = 1 + rng.below(4);
    StridedMatrix gate(rows, columns, 1), up(rows, columns, 2), y(rows, columns, 3);
    const StridedMatrix expected(rows, columns);
    gate.fill_normal(rng, 8.0f);
    up.fill_normal(rng, 2.0f);
    swiglu(context, {gate.view(), up.view(), y.view()});
    swiglu_reference({gate.view(), up.view(), expected.view()});
    expect_close(y, expected, up);
    EXPECT_TRUE(y.gaps_untouched());
  }
}

TEST_P(Swiglu, WholeRangeOfGates) {
  Context context(1);
  constexpr int64_t kCount = 40001;
  StridedMatrix gate(1, kCount), up(1, kCount), y(1, kCount), expected(1, kCount);
  for (int64_t c = 0; c < kCount; ++c) {
    gate.row(0)[c] = static_cast<float>(c - 20000) * 0.01f;
    up.row(0)[c] = 1.0f;
  }
  swiglu(context, {gate.view(), up.view(), y.view()});
  swiglu_reference({gate.view(), up.view(), expected.view()});
  expect_close(y, expected, up);
}

TEST_P(Swiglu, Extremes) {
  Context context(1);
  const float inf = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  StridedMatrix gate(1, 6), up(1, 6), y(1, 6);
  const float gates[] = {-inf, -largest, -1000.0f, 0.0f, inf, test::kPoison};
  std::copy_n(gates, 6, gate.row(0));
  std::fill_n(up.row(0), 6, 2.0f);
  swiglu(context, {gate.view(), up.view(), y.view()});
  for (int c = 0; c < 4; ++c) EXPECT_EQ(y.at(0, c), 0.0f) << c;
  EXPECT_EQ(y.at(0, 4), inf);
  EXPECT_TRUE(std::isnan(y.at(0, 5)));
}

TEST_P(Swiglu, InPlaceAndThreadsGiveTheSameBits) {
  Rng rng(3);
  Context one(1);
  StridedMatrix gate(5, 9001), up(5, 9001), y(5, 9001);
  gate.fill_normal(rng, 5.0f);
  up.fill_normal(rng);
  swiglu(one, {gate.view(), up.view(), y.view()});
  for (const int threads : {1, 2, 3, 8}) {
    Context context(threads);
    const StridedMatrix on_gate = gate.clone();
    const StridedMatrix on_up = up.clone();
    swiglu(context, {on_gate.view(), up.view(), on_gate.view()});
    swiglu(context, {gate.view(), on_up.view(), on_up.view()});
    EXPECT_TRUE(test::same_bits(on_gate.view(), y.view()));
    EXPECT_TRUE(test::same_bits(on_up.view(), y.view()));
  }
}

TEST(SwigluArguments, WrongOnesAreNamed) {
  Context context(1);
  StridedMatrix a(4, 8), b(4, 9);
  const auto message = [&](const SwigluArgs& args) -> std::string {
    try {
      swiglu(context, args);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({a.view(), b.view(), a.view()}),
            "swiglu: up: expected f32 [4, 8], got f32 [4, 9]");
  EXPECT_EQ(message({a.view().rows(0, 2), a.view().rows(2, 2), a.view().rows(1, 2)}),
            "swiglu: gate and y: expected the same or separate memory, got overlapping in part");
  EXPECT_EQ(message({a.view().rows(0, 0), a.view().rows(0, 0), a.view().rows(0, 0)}), "accepted");
}

}  // namespace
}  // namespace spb::ops
