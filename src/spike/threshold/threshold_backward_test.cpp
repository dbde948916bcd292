#include "spike/threshold/threshold_test_counts.h"

namespace spb::spike {
namespace {

using test::StridedMatrix;

TEST(ThresholdBackward, PassesStraightThroughExceptInTheDeadZone) {
  Rng rng(6);
  Context context(2);
  StridedMatrix x(37, 301), d_y(37, 301, 2);
  x.fill_normal(rng);
  d_y.fill_normal(rng);
  for (const int32_t dead_zone : {0, 1}) {
    Counts counts(37, 301);
    const ThresholdSettings settings = {.dead_zone = dead_zone};
    spike_threshold(context, {x.view(), settings, &counts.out});
    const StridedMatrix d_x(37, 301, 1);
    spike_threshold_backward(context, {counts.out.core, d_y.view(), dead_zone, d_x.view()});
    int64_t stopped = 0;
    for (int64_t i = 0; i < 37 * 301; ++i) {
      const int64_t m = i / 301, c = i % 301;
      const bool passes = dead_zone == 0 || counts.out.core.row_as<int8_t>(m)[c] != 0;
      EXPECT_EQ(d_x.at(m, c), passes ? d_y.at(m, c) : 0.0f);
      stopped += !passes;
    }
    EXPECT_EQ(stopped > 0, dead_zone > 0);
    EXPECT_TRUE(d_x.gaps_untouched());
    const StridedMatrix in_place = d_y.clone();
    spike_threshold_backward(context,
                             {counts.out.core, in_place.view(), dead_zone, in_place.view()});
    EXPECT_TRUE(test::same_bits(in_place.view(), d_x.view()));
  }
}

// Where rounding is a small part of y, a finite difference over many thresholds sees slope 1.
TEST(ThresholdBackward, IsTheSlopeOverManyCounts) {
  Context context(1);
  StridedMatrix x(2, 64);
  for (int64_t c = 0; c < 64; ++c) {
    x.row(0)[c] = 40.0f + static_cast<float>(c);
    x.row(1)[c] = x.at(0, c) + 24.0f;
  }
  const ThresholdSettings unit = {.min_threshold = 0.125f, .max_threshold = 0.125f};
  Counts counts(2, 64);
  spike_threshold(context, {x.view(), unit, &counts.out});
  for (int32_t c = 0; c < 64; ++c) {
    const auto rise = static_cast<float>(counts.count(1, c) - counts.count(0, c)) * 0.125f;
    EXPECT_EQ(rise / 24.0f, 1.0f);
  }
}

TEST(ThresholdBackward, WrongArgumentsAreNamed) {
  Context context(1);
  const StridedMatrix d_y(4, 8), d_x(4, 9);
  Counts counts(4, 8);
  EXPECT_EQ(test::message_of(
                ErrorKind::kUsage,
                [&] {
                  spike_threshold_backward(context, {counts.out.core, d_y.view(), 0, d_x.view()});
                }),
            "spike_threshold_backward: d_x: expected f32 [4, 8], got f32 [4, 9]");
}

}  // namespace
}  // namespace spb::spike
