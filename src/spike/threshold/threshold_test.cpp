#include "spike/threshold/threshold.h"

#include "ops/swiglu/swiglu.h"
#include "spike/threshold/threshold_test_counts.h"

namespace spb::spike {
namespace {

using test::StridedMatrix;

void expect_same(const Counts& a, const Counts& b) {
  EXPECT_TRUE(test::same_bits(a.out.thresholds, b.out.thresholds));
  EXPECT_TRUE(test::same_bits(a.out.core, b.out.core));
  EXPECT_EQ(a.out.bursts, b.out.bursts);
  EXPECT_EQ(a.out.active, b.out.active);
  EXPECT_EQ(a.out.active_begin, b.out.active_begin);
}

// Drives as a model has them: mostly small, some zero, a few far outside.
void fill_drives(StridedMatrix& x, Rng& rng) {
  x.fill_normal(rng, std::pow(10.0f, rng.uniform(-3.0f, 3.0f)));
  for (int64_t m = 0; m < x.view().shape()[0]; ++m) {
    for (int64_t c = 0; c < x.view().shape()[1]; ++c) {
      const double kind = rng.uniform();
      if (kind < 0.05) x.row(m)[c] *= 300.0f;
      if (kind > 0.9) x.row(m)[c] = kind > 0.95 ? 0.0f : -0.0f;
    }
  }
}

ThresholdSettings random_settings(Rng& rng) {
  ThresholdSettings settings;
  settings.k = rng.uniform(0.5f, 6.0f);
  settings.dead_zone = static_cast<int32_t>(rng.below(3)) * static_cast<int32_t>(rng.below(2));
  settings.bf16_mean = rng.below(2) == 1;
  return settings;
}

class Threshold : public ::testing::TestWithParam<Isa> {
 protected:
  // A single row through the operator.
  Counts fire(const std::vector<float>& drives, const ThresholdSettings& settings = {}) {
    const auto channels = static_cast<int64_t>(drives.size());
    StridedMatrix x(1, channels);
    std::copy(drives.begin(), drives.end(), x.row(0));
    Counts counts(1, channels);
    spike_threshold(context_, {x.view(), settings, &counts.out, true});
    return counts;
  }

  test::IsaScope level_{GetParam()};
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(Levels, Threshold, ::testing::ValuesIn(test::isa_levels()));

TEST_P(Threshold, EqualsTheReferenceBitForBitOnOddShapes) {
  Rng rng(1);
  for (const int64_t channels :
       {1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 66, 79, 127, 128, 129, 191, 1000, 3589, 18944}) {
    for (int trial = 0; trial < 4; ++trial) {
      const int64_t rows = 1 + rng.below(5);
      StridedMatrix x(rows, channels, rng.below(3));
      fill_drives(x, rng);
      Counts actual(rows, channels), expected(rows, channels);
      const ThresholdSettings settings = random_settings(rng);
      const bool want_active = rng.below(4) > 0;
      spike_threshold(context_, {x.view(), settings, &actual.out, want_active});
      spike_threshold_reference({x.view(), settings, &expected.out, want_active});
      expect_same(actual, expected);
      EXPECT_TRUE(actual.gaps_untouched());
    }
  }
}

TEST_P(Threshold, OfSwigluIsThatOfItsDrives) {
  Rng rng(31);
  for (const int64_t channels : {1, 63, 130, 1000}) {
    const int64_t rows = 1 + rng.below(20);
    StridedMatrix gate(rows, channels, rng.below(3)), up(rows, channels, rng.below(3));
    gate.fill_normal(rng);
    up.fill_normal(rng);
    StridedMatrix product(rows, channels);
    ops::swiglu(context_, {gate.view(), up.view(), product.view()});
    Counts fused(rows, channels), apart(rows, channels);
    spike_threshold(context_, {gate.view(), {.k = 40}, &fused.out, true, up.view()});
    spike_threshold(context_, {product.view(), {.k = 40}, &apart.out, true});
    EXPECT_FALSE(apart.out.bursts.empty() && channels == 1000);
    expect_same(fused, apart);
  }
}

TEST_P(Threshold, ThreadsDoNotChangeTheResult) {
  Rng rng(2);
  StridedMatrix x(203, 331);
  fill_drives(x, rng);
  Counts expected(203, 331);
  spike_threshold_reference({x.view(), {}, &expected.out, true});
  ASSERT_GT(expected.out.bursts.size(), 10u);
  for (const int threads : {1, 2, 3, 8}) {
    Context context(threads);
    Counts actual(203, 331);
    spike_threshold(context, {x.view(), {}, &actual.out, true});
    expect_same(actual, expected);
  }
}

TEST_P(Threshold, MeanIsThatOfDoublesWithinTheBound) {
  Rng rng(3);
  for (const int64_t channels : {1, 5, 64, 100, 1536, 18944, 200003}) {
    StridedMatrix x(1, channels);
    fill_drives(x, rng);
    Counts counts(1, channels);
    ThresholdSettings settings;
    settings.min_threshold = 1e-30f;
    settings.max_threshold = 1e30f;
    spike_threshold(context_, {x.view(), settings, &counts.out});
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += std::fabs(static_cast<double>(x.at(0, c)));
    const double exact = sum / static_cast<double>(channels) / 3.0;
    const double bound = static_cast<double>(channels / 64 + 8) * 0x1p-24;
    EXPECT_NEAR(counts.threshold(0), exact, exact * bound) << channels;
  }
}

TEST_P(Threshold, TiesGoToTheEvenCount) {
  // 24 drives with a mean of 3, so the threshold is exactly 1.
  std::vector<float> x = {0.5f, 1.5f, 2.5f, 3.5f, -0.5f, -1.5f, -2.5f, -3.5f, 4.5f, -4.5f};
  while (x.size() < 23) x.push_back(3.0f);
  float sum = 0;
  for (const float drive : x) sum += std::fabs(drive);
  x.push_back(72.0f - sum);
  const Counts counts = fire(x);
  ASSERT_EQ(counts.threshold(0), 1.0f);
  const int32_t expected[] = {0, 2, 2, 4, 0, -2, -2, -4, 4, -4};
  for (int32_t c = 0; c < 10; ++c) EXPECT_EQ(counts.count(0, c), expected[c]) << c;
}

// Thresholds of exactly 1 by way of the limits.
const ThresholdSettings kUnit = {.min_threshold = 1.0f, .max_threshold = 1.0f};

TEST_P(Threshold, RoundsLargeQuotientsToEvenToo) {
  const Counts counts = fire({4194304.5f, 4194305.5f, -4194305.5f, 8388607.5f, -8388606.5f,
                              8388609.0f, 16777215.0f, -16777216.0f},
                             kUnit);
  const int32_t expected[] = {4194304,  4194306, -4194306, 8388608,
                              -8388606, 8388609, 16777215, -16777216};
  for (int32_t c = 0; c < 8; ++c) EXPECT_EQ(counts.count(0, c), expected[c]) << c;
}

TEST_P(Threshold, CountsBeyondTheCoreAreBursts) {
  const Counts counts =
      fire({126.5f, 127.0f, 127.5f, 128.0f, -127.0f, -127.5f, -500.0f, 0.0f}, kUnit);
  const int8_t core[] = {126, 127, 127, 127, -127, -127, -127, 0};
  for (int32_t c = 0; c < 8; ++c) EXPECT_EQ(counts.out.core.as<int8_t>()[c], core[c]) << c;
  const std::vector<Burst> bursts = {{0, 2, 1}, {0, 3, 1}, {0, 5, -1}, {0, 6, -373}};
  EXPECT_EQ(counts.out.bursts, bursts);
}

TEST_P(Threshold, OneHotRowsCountUpToKTimesTheirChannels) {
  for (const int32_t channels : {1, 2, 16, 129, 20011}) {
    std::vector<float> x(static_cast<size_t>(channels), 0.0f);
    x.back() = -0.75f;
    const Counts counts = fire(x);
    EXPECT_NEAR(counts.count(0, channels - 1), -3 * channels, 1);
    EXPECT_EQ(counts.out.active, std::vector<int32_t>{channels - 1});
  }
}

TEST_P(Threshold, SilentRowsAndTheLimitsOfTheThreshold) {
  const Counts zero = fire(std::vector<float>(37, -0.0f));
  EXPECT_EQ(zero.threshold(0), 1e-5f);
  EXPECT_TRUE(zero.out.active.empty());
  EXPECT_EQ(zero.out.active_begin, (std::vector<int64_t>{0, 0}));

  const Counts faint = fire(std::vector<float>(37, 4e-6f));
  EXPECT_EQ(faint.threshold(0), 1e-5f);
  EXPECT_TRUE(faint.out.active.empty());
  const Counts denormal = fire({1e-40f, -1e-45f});
  EXPECT_EQ(denormal.count(0, 0), 0);

  const Counts strong = fire(std::vector<float>(37, -1e5f));
  EXPECT_EQ(strong.threshold(0), 1e4f);
  EXPECT_EQ(strong.count(0, 36), -10);
}

TEST_P(Threshold, FiniteDrivesWhoseSumOverflows) {
  ThresholdSettings settings;
  settings.max_threshold = 1e38f;
  const Counts counts = fire({3e38f, -3e38f, 1e37f}, settings);
  EXPECT_EQ(counts.threshold(0), 1e38f);
  EXPECT_EQ(counts.count(0, 0), 3);
  EXPECT_EQ(counts.count(0, 1), -3);
  EXPECT_EQ(counts.count(0, 2), 0);
}

TEST_P(Threshold, MeanRoundedToBf16) {
  // The mean is 1 + 2^-9 + 2^-12, between the bf16 neighbours 1 and 1 + 2^-7, nearer to 1.
  const std::vector<float> x(50, -(1.0f + 0x1p-9f + 0x1p-12f));
  ThresholdSettings settings;
  settings.bf16_mean = true;
  EXPECT_EQ(fire(x, settings).threshold(0), 1.0f / 3.0f);
  settings.bf16_mean = false;
  EXPECT_GT(fire(x, settings).threshold(0), 1.001f / 3.0f);
}

TEST_P(Threshold, DeadZoneSilencesSmallCountsOnly) {
  ThresholdSettings settings = kUnit;
  settings.dead_zone = 2;
  const Counts counts = fire({0.0f, 1.0f, -2.0f, 2.5f, 2.51f, -3.0f, 200.0f}, settings);
  const int32_t expected[] = {0, 0, 0, 0, 3, -3, 200};
  for (int32_t c = 0; c < 7; ++c) EXPECT_EQ(counts.count(0, c), expected[c]) << c;
  EXPECT_EQ(counts.out.active, (std::vector<int32_t>{4, 5, 6}));
  settings.dead_zone = 1 << 23;
  EXPECT_EQ(fire({8388608.0f, -8388609.0f}, settings).out.active, std::vector<int32_t>{1});
  settings.dead_zone = 200;
  EXPECT_TRUE(fire({150.0f, 200.0f, -200.0f}, settings).out.bursts.empty());
}

TEST_P(Threshold, DrivesThatAreNotFiniteAreNamed) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int threads : {1, 3}) {
    Context context(threads);
    StridedMatrix x(3001, 70);
    Rng rng(4);
    x.fill_normal(rng);
    Counts counts(3001, 70);
    const auto refusal = [&] {
      return test::message_of(ErrorKind::kData, [&] {
        spike_threshold(context, {x.view(), {}, &counts.out});
      });
    };
    EXPECT_EQ(refusal(), "nothing was thrown");
    x.row(2999)[3] = inf;
    EXPECT_EQ(refusal(),
              "spike_threshold: x: expected finite numbers, got inf at row 2999, channel 3");
    x.row(1002)[69] = test::kPoison;
    EXPECT_EQ(refusal(),
              "spike_threshold: x: expected finite numbers, got nan at row 1002, channel 69");
    x.row(7)[0] = -inf;
    x.row(7)[1] = inf;
    EXPECT_EQ(refusal(),
              "spike_threshold: x: expected finite numbers, got -inf at row 7, channel 0");
  }
}

TEST_P(Threshold, CountsThatF32CannotHoldAreNamed) {
  const auto refusal = [&](const std::vector<float>& x) {
    return test::message_of(ErrorKind::kData, [&] { fire(x, kUnit); });
  };
  EXPECT_EQ(
      refusal({1.0f, 16777216.0f, -16777218.0f}),
      "spike_threshold: x: expected counts up to 2^24, got -16777218 / 1 at row 0, channel 2");
  EXPECT_EQ(refusal({3e38f, 3e38f}),
            "spike_threshold: x: expected counts up to 2^24, got 3e+38 / 1 at row 0, channel 0");
}

TEST(ThresholdArguments, WrongOnesAreNamed) {
  Context context(1);
  StridedMatrix x(4, 8);
  Rng rng(5);
  x.fill_normal(rng);
  const auto refusal = [&](Counts& counts, const ThresholdSettings& settings) {
    return test::message_of(ErrorKind::kUsage, [&] {
      spike_threshold(context, {x.view(), settings, &counts.out});
    });
  };
  Counts right(4, 8), wide(4, 9);
  EXPECT_EQ(refusal(wide, {}), "spike_threshold: core: expected i8 [4, 8], got i8 [4, 9]");
  EXPECT_EQ(
      test::message_of(ErrorKind::kUsage,
                       [&] {
                         StridedMatrix narrow(4, 7);
                         spike_threshold(context, {x.view(), {}, &right.out, false, narrow.view()});
                       }),
      "spike_threshold: up: expected f32 [4, 8], got f32 [4, 7]");
  EXPECT_EQ(refusal(right, {.k = 0}), "spike_threshold: k: expected a positive number, got 0");
  EXPECT_EQ(refusal(right, {.k = NAN}), "spike_threshold: k: expected a positive number, got nan");
  EXPECT_EQ(refusal(right, {.min_threshold = 2.0f, .max_threshold = 1.0f}),
            "spike_threshold: threshold limits: expected 0 < min <= max, got 2 and 1");
  EXPECT_EQ(refusal(right, {.dead_zone = -1}),
            "spike_threshold: dead zone: expected 0 to 16777216, got -1");
  EXPECT_EQ(test::message_of(ErrorKind::kUsage,
                             [&] {
                               spike_threshold(context, {x.view(), {}, nullptr});
                             }),
            "spike_threshold: out: expected counts to write to, got none");
  Counts none(4, 0);
  EXPECT_NE(
      test::message_of(ErrorKind::kUsage,
                       [&] {
                         spike_threshold(context, {StridedMatrix(4, 0).view(), {}, &none.out});
                       }),
      "nothing was thrown");
}

TEST(ThresholdArguments, NoRowsLeaveNothingOfAnEarlierCall) {
  Context context(1);
  const StridedMatrix x(0, 8);
  Counts counts(0, 8);
  spike_threshold(context, {x.view(), {}, &counts.out, true});
  EXPECT_TRUE(counts.out.bursts.empty());
  EXPECT_TRUE(counts.out.active.empty());
  EXPECT_EQ(counts.out.active_begin, std::vector<int64_t>{0});
}

}  // namespace
}  // namespace spb::spike
